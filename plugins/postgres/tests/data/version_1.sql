-- Tables and rows of version 1 of the schema, as a store of that version wrote them.
BEGIN;
CREATE TABLE IF NOT EXISTS "kode_meta" (key text NOT NULL PRIMARY KEY, value bigint NOT NULL);
CREATE TABLE "kode_agents" (
        agent_id text COLLATE "C" NOT NULL,
        message_version bigint NOT NULL,
        message_count bigint NOT NULL,
        tool_call_version bigint NOT NULL,
        tool_call_count bigint NOT NULL,
        updated_at bigint NOT NULL,
        last_offset bigint NOT NULL,
        ops bigint[] NOT NULL,
        op_times bigint[] NOT NULL,
        template_id text COLLATE "C",
        created_at bigint,
        PRIMARY KEY (agent_id)
    );
CREATE TABLE "kode_infos" (
        agent_id text COLLATE "C" NOT NULL,
        metadata jsonb NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL,
        PRIMARY KEY (agent_id)
    );
CREATE TABLE "kode_messages" (
        agent_id text COLLATE "C" NOT NULL,
        position bigint NOT NULL,
        created_at bigint NOT NULL,
        role text COLLATE "C" NOT NULL,
        content_types text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL,
        PRIMARY KEY (agent_id, position)
    );
CREATE TABLE "kode_tool_calls" (
        agent_id text COLLATE "C" NOT NULL,
        position bigint NOT NULL,
        created_at bigint NOT NULL,
        call_id text COLLATE "C" NOT NULL,
        tool_name text COLLATE "C" NOT NULL,
        state text COLLATE "C" NOT NULL,
        is_error boolean NOT NULL,
        has_approval boolean NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL,
        PRIMARY KEY (agent_id, position)
    );
CREATE TABLE "kode_docs" (
        agent_id text COLLATE "C" NOT NULL,
        kind text COLLATE "C" NOT NULL,
        key_hash bytea NOT NULL,
        key text COLLATE "C" NOT NULL,
        time bigint NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL,
        PRIMARY KEY (agent_id, kind, key_hash)
    );
CREATE TABLE "kode_events" (
        agent_id text COLLATE "C" NOT NULL,
        "offset" bigint NOT NULL,
        seq bigint NOT NULL,
        channel text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL,
        PRIMARY KEY (agent_id, "offset")
    );
CREATE TABLE "kode_leases" (
        agent_id text COLLATE "C" NOT NULL,
        owner text COLLATE "C" NOT NULL,
        token bigint NOT NULL,
        expires timestamptz NOT NULL,
        PRIMARY KEY (agent_id)
    );
CREATE TABLE "kode_followers" (
        agent_id text COLLATE "C" NOT NULL,
        expires timestamptz NOT NULL,
        PRIMARY KEY (agent_id)
    );
ALTER TABLE "kode_agents" SET (fillfactor = 70);
CREATE UNIQUE INDEX "kode_events_seq" ON "kode_events" (agent_id, seq, digest);
CREATE INDEX "kode_agents_created" ON "kode_agents" (created_at, agent_id) WHERE created_at IS NOT NULL;
CREATE INDEX "kode_agents_updated" ON "kode_agents" (updated_at, agent_id) WHERE created_at IS NOT NULL;
CREATE INDEX "kode_agents_template" ON "kode_agents" (template_id, created_at, agent_id) WHERE created_at IS NOT NULL;
CREATE INDEX "kode_infos_metadata" ON "kode_infos" USING gin (metadata jsonb_path_ops);
CREATE INDEX "kode_messages_agent_created" ON "kode_messages" (agent_id, created_at, position);
CREATE INDEX "kode_messages_created" ON "kode_messages" (created_at, agent_id, position);
CREATE INDEX "kode_tool_calls_agent_created" ON "kode_tool_calls" (agent_id, created_at, position);
CREATE INDEX "kode_tool_calls_created" ON "kode_tool_calls" (created_at, agent_id, position);
CREATE INDEX "kode_tool_calls_name" ON "kode_tool_calls" (tool_name, created_at, agent_id, position);
CREATE INDEX "kode_tool_calls_errors" ON "kode_tool_calls" (created_at, agent_id, position) WHERE is_error;
CREATE INDEX "kode_tool_calls_call" ON "kode_tool_calls" (agent_id, call_id, position);
INSERT INTO "kode_meta" VALUES ('schema_version', 1) ON CONFLICT (key) DO UPDATE SET value = excluded.value;
COMMIT;
INSERT INTO kode_agents SELECT ('("no info",4021772685925944,2,0,0,1795878248204,0,{-1125935529451497619},{1795878248207},,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('("only events",0,0,0,0,0,1,{809286700742337125},{1795878248216},,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('("rich é/''quoted''\\",1997410600619216,7,897913644391656,3,1795878248013,3,"{8742493506293083266,-3239590234426647729,8907741247576241260,6650616487988907149,-86725643794241566,-4487658559169571011,8286566657707289595,4265019289565518063,-6411304193833883460,132171767378671}","{1795878248171,1795878248161,1795878248148,1795878248126,1795878248108,1795878248097,1795878248077,1795878248017,1795878247999,1795878247992}",assistant,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-00,2724315475264711,4,4192757382065895,2,1795878247604,24,"{4121465302987413565,-7720537228969538363,-4537590242994733334,4970745756128672369,-3392429781871970977,-4984204939555202693,-4140556553281479977,-6117027611816788057,9067851694923868961,2791097327142573044,-4701827990208973287,6910924692537099887,3664766803445627027,-6747117636675339184,-8262322924494417974,-1914969620283562667}","{1795878248640,1795878248636,1795878248631,1795878248626,1795878248624,1795878248617,1795878248613,1795878248610,1795878248609,1795878248599,1795878248598,1795878248592,1795878248590,1795878248584,1795878248576,1795878248572}",tpl-0,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-01,1209387652641429,6,1167233712837991,2,1795878248495,5,"{797879045976347682,6020786320020028392,9015054273945428688}","{1795878248498,1795878247646,1795878247640}",tpl-1,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-02,4252830707848797,6,2477734877909230,2,1795878247661,6,"{-4255357297495708297,-7141938289409186644}","{1795878247665,1795878247659}",tpl-2,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-03,1154137822250236,7,2316451660441828,2,1795878247682,7,"{4515618133536012970,-2262241962311159899}","{1795878247683,1795878247676}",tpl-0,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-04,1099782306632057,8,1013302800179133,2,1795878247710,8,"{-6586021878123010540,-8351891895425200762}","{1795878247714,1795878247704}",tpl-1,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-05,1196724032239493,9,125051301090101,2,1795878247733,9,"{-1907168979513092831,-1848568709308552838}","{1795878247743,1795878247726}",tpl-2,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-06,1839342906346402,10,1945455143990667,2,1795878247785,10,"{-6284135981363883539,-8698540505948303762}","{1795878247786,1795878247770}",tpl-0,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-07,1683639878296334,11,3534549934326154,2,1795878247821,11,"{-8540521178777659471,761585156892752644}","{1795878247825,1795878247808}",tpl-1,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-08,172307265452446,12,1759163956798113,2,1795878247876,12,"{-542436643690750494,-5193047543506927327}","{1795878247877,1795878247858}",tpl-2,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-09,3572448639414130,13,1701741270924110,2,1795878247912,13,"{-8912862635169748735,-3747831171403340367}","{1795878247919,1795878247899}",tpl-0,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-10,1230018824498483,14,1534329430163943,2,1795878247950,14,"{-6992754261675641846,-2862075749134915836}","{1795878247951,1795878247939}",tpl-1,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agent-11,1339093514853740,15,817785920544095,2,1795878247977,15,"{8463513769536557084,-2661905716463429992}","{1795878247980,1795878247971}",tpl-2,1767258000000)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,4431275066311891,7,2745433514396393,2,1795878248185,0,{},{},tpl-0,1795878248185)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,4355588104989695,7,4318121116278646,2,1795878248185,0,{},{},tpl-0,1795878248185)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-0,0,0,0,0,0,6,"{3063143186516496167,-6354395128568910557}","{1795878248269,1795878248227}",,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-1,0,0,0,0,0,6,"{4806926176492940396,-3914097934182370868}","{1795878248295,1795878248275}",,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-2,0,0,0,0,0,6,"{-9028984555661796796,3302162794053047841}","{1795878248330,1795878248313}",,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-3,0,0,0,0,0,6,"{-2211581719579795847,-5980227376461252974}","{1795878248368,1795878248346}",,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-4,0,0,0,0,0,6,"{1097480468253131123,2978924290970148611}","{1795878248387,1795878248370}",,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-5,0,0,0,0,0,6,"{2750473757243909285,8259178421934209825}","{1795878248420,1795878248393}",,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-6,0,0,0,0,0,6,"{328309837267409789,2574821725141089864}","{1795878248438,1795878248425}",,)'::kode_agents).*;
INSERT INTO kode_agents SELECT ('(gone-7,0,0,0,0,0,6,"{-1429272314145323936,6765326758685727965}","{1795878248472,1795878248452}",,)'::kode_agents).*;
INSERT INTO kode_infos SELECT ('("rich é/''quoted''\\","{""nested"": ""{\\""a\\"":[1,2.5,null]}"", ""userId"": ""\\""u-0\\""""}","\\xed5689bfc1e13b6e156f7424544cb1c7","{""agentId"":""rich é/''quoted''\\\\"",""templateId"":""assistant"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-0"",""nested"":{""a"":[1,2.5,null]}}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-00,"{""n"": ""0"", ""plan"": ""\\""gold\\"""", ""userId"": ""\\""u-0\\""""}","\\x60bd707b84114d580545ef389c17a9cb","{""agentId"":""agent-00"",""templateId"":""tpl-0"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-0"",""plan"":""gold"",""n"":0}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-01,"{""n"": ""1"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-1\\""""}","\\x635836365cf3fee15fcce271f13ff58f","{""agentId"":""agent-01"",""templateId"":""tpl-1"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-1"",""plan"":""free"",""n"":1}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-02,"{""n"": ""2"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-2\\""""}","\\x5d1913b07e189c90de4c6be29b2bb3e2","{""agentId"":""agent-02"",""templateId"":""tpl-2"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-2"",""plan"":""free"",""n"":2}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-03,"{""n"": ""3"", ""plan"": ""\\""gold\\"""", ""userId"": ""\\""u-3\\""""}","\\xea07f7c85aa665c72c6cbb8526aa4ace","{""agentId"":""agent-03"",""templateId"":""tpl-0"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-3"",""plan"":""gold"",""n"":3}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-04,"{""n"": ""4"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-0\\""""}","\\x24dafa99c05ebe7f7c86251d48791fa3","{""agentId"":""agent-04"",""templateId"":""tpl-1"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-0"",""plan"":""free"",""n"":4}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-05,"{""n"": ""5"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-1\\""""}","\\x6d3734e163d6dfbb77262b53625b01a3","{""agentId"":""agent-05"",""templateId"":""tpl-2"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-1"",""plan"":""free"",""n"":5}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-06,"{""n"": ""6"", ""plan"": ""\\""gold\\"""", ""userId"": ""\\""u-2\\""""}","\\xb4220bc53522fd670275fc1444572a4f","{""agentId"":""agent-06"",""templateId"":""tpl-0"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-2"",""plan"":""gold"",""n"":6}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-07,"{""n"": ""7"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-3\\""""}","\\x492d89eeb855dd75e84a61f2ad1a8a02","{""agentId"":""agent-07"",""templateId"":""tpl-1"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-3"",""plan"":""free"",""n"":7}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-08,"{""n"": ""8"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-0\\""""}","\\xf955b31f6ffde5f3a7a9658ee5d5825e","{""agentId"":""agent-08"",""templateId"":""tpl-2"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-0"",""plan"":""free"",""n"":8}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-09,"{""n"": ""9"", ""plan"": ""\\""gold\\"""", ""userId"": ""\\""u-1\\""""}","\\xd5e1869f992ae6a49377112f2852a4f5","{""agentId"":""agent-09"",""templateId"":""tpl-0"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-1"",""plan"":""gold"",""n"":9}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-10,"{""n"": ""10"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-2\\""""}","\\x1b7bb271363a4965dc47b5a842a5ba0c","{""agentId"":""agent-10"",""templateId"":""tpl-1"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-2"",""plan"":""free"",""n"":10}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agent-11,"{""n"": ""11"", ""plan"": ""\\""free\\"""", ""userId"": ""\\""u-3\\""""}","\\x785bbc16b43efebf380294b60dfdbad8","{""agentId"":""agent-11"",""templateId"":""tpl-2"",""createdAt"":1767258000000,""lineage"":[],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""lastBookmark"":{""seq"":7,""timestamp"":1767258000000},""breakpoint"":""READY"",""metadata"":{""userId"":""u-3"",""plan"":""free"",""n"":11}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,"{""n"": ""3"", ""plan"": ""\\""gold\\"""", ""userId"": ""\\""u-3\\""""}","\\x7e2652868506bd0480ca25cad7c9fa27","{""agentId"":""agt-01m8hayqqs79j760vc04dm33dx"",""templateId"":""tpl-0"",""createdAt"":1795878248185,""lineage"":[""agent-03""],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""breakpoint"":""READY"",""metadata"":{""userId"":""u-3"",""plan"":""gold"",""n"":3}}")'::kode_infos).*;
INSERT INTO kode_infos SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,"{""n"": ""3"", ""plan"": ""\\""gold\\"""", ""userId"": ""\\""u-3\\""""}","\\xb10c91c9d4844b704d5bfe9cb7180b85","{""agentId"":""agt-01m8hayqqs79j760vc04dm33dy"",""templateId"":""tpl-0"",""createdAt"":1795878248185,""lineage"":[""agent-03""],""configVersion"":""v2.7.0"",""messageCount"":0,""lastSfpIndex"":3,""breakpoint"":""READY"",""metadata"":{""userId"":""u-3"",""plan"":""gold"",""n"":3}}")'::kode_infos).*;
INSERT INTO kode_messages SELECT ('("no info",0,1795878248203,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("no info",1,1795878248203,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("rich é/''quoted''\\",0,1795878247984,system,"
text
","\\x554a7bc58054024ec292feafbe657dd6","{""role"":""system"",""content"":[{""type"":""text"",""text"":""Be brief.""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("rich é/''quoted''\\",1,1795878247984,user,"
image
text
","\\xa643f8e6cfa7568e6129ba8599249092","{""role"":""user"",""content"":[{""type"":""text"",""text"":""look""},{""type"":""image"",""meta"":{""detail"":""low""},""url"":""https://example.com/a.png""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("rich é/''quoted''\\",2,1795878247984,user,"
audio
video
","\\x86362c69b3b01360a7cb053261d9bc71","{""role"":""user"",""content"":[{""type"":""audio"",""base64"":""UklGRg=="",""mime_type"":""audio/wav""},{""type"":""video"",""file_id"":""file-1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("rich é/''quoted''\\",3,1795878247984,user,"
file
","\\x14b61e8dac568bac1479a7211d9eb382","{""role"":""user"",""content"":[{""type"":""file"",""base64"":""JVBERi0="",""mime_type"":""application/pdf"",""filename"":""a b.pdf""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("rich é/''quoted''\\",4,1795878247984,assistant,"
reasoning
tool_use
","\\xd892085946df0746aba4ddc370b077b2","{""role"":""assistant"",""content"":[{""type"":""reasoning"",""reasoning"":""hm""},{""type"":""tool_use"",""id"":""call_0"",""name"":""search"",""input"":{""q"":""x"",""n"":3}}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("rich é/''quoted''\\",5,1795878247984,user,"
tool_result
","\\xebd48d96d639e92fc31fbf3b6c685b8c","{""role"":""user"",""content"":[{""type"":""tool_result"",""tool_use_id"":""call_0"",""content"":[{""type"":""text"",""text"":""found""}],""is_error"":false}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('("rich é/''quoted''\\",6,1795878247984,assistant,"
text
","\\xb92e53d60830133d36ab41d509bcc325","{""role"":""assistant"",""content"":[{""type"":""text"",""text"":""done""}],""metadata"":{""transport"":""provider""}}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-00,0,1795878247524,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-00,1,1795878247524,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-00,2,1795878247524,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-00,3,1795878247604,user,"
text
","\\xd81bfd6f33e3ba408a40d330c9d71b36","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 99""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-01,0,1795878247633,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-01,1,1795878247633,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-01,2,1795878247633,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-01,3,1795878247633,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-01,4,1795878247644,user,"
text
","\\x2b1c3f2f1113609fb920255a52d04af0","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 1 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-01,5,1795878248495,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-02,0,1795878247654,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-02,1,1795878247654,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-02,2,1795878247654,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-02,3,1795878247654,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-02,4,1795878247654,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-02,5,1795878247661,user,"
text
","\\xd81bfd6f33e3ba408a40d330c9d71b36","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 99""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-03,0,1795878247667,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-03,1,1795878247667,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-03,2,1795878247667,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-03,3,1795878247667,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-03,4,1795878247667,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-03,5,1795878247667,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-03,6,1795878247681,user,"
text
","\\x9d8ff0d0459cc550a976232723c74f9e","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 3 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,0,1795878247690,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,1,1795878247690,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,2,1795878247690,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,3,1795878247690,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,4,1795878247690,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,5,1795878247690,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,6,1795878247690,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-04,7,1795878247710,user,"
text
","\\xd81bfd6f33e3ba408a40d330c9d71b36","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 99""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,0,1795878247716,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,1,1795878247716,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,2,1795878247716,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,3,1795878247716,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,4,1795878247716,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,5,1795878247716,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,6,1795878247716,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,7,1795878247716,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-05,8,1795878247733,user,"
text
","\\x7451275537a1a6d6e082578220db1e6f","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 5 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,0,1795878247746,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,1,1795878247746,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,2,1795878247746,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,3,1795878247746,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,4,1795878247746,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,5,1795878247746,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,6,1795878247746,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,7,1795878247746,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,8,1795878247746,user,"
text
","\\x3ceba73ac5e161b8ef9cf21aba28b4d1","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 8""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-06,9,1795878247785,user,"
text
","\\xd81bfd6f33e3ba408a40d330c9d71b36","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 99""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,0,1795878247797,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,1,1795878247797,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,10,1795878247821,user,"
text
","\\x99e7b04b1d192190651f130ad7fdd35b","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 7 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,2,1795878247797,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,3,1795878247797,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,4,1795878247797,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,5,1795878247797,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,6,1795878247797,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,7,1795878247797,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,8,1795878247797,user,"
text
","\\x3ceba73ac5e161b8ef9cf21aba28b4d1","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 8""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-07,9,1795878247797,user,"
text
","\\x097b289507798e5dfe4d8dff6fbc62db","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 9""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,0,1795878247842,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,1,1795878247842,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,10,1795878247842,user,"
text
","\\xaf6e2160acbec85fe7ab36d2b7bdc137","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 10""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,11,1795878247875,user,"
text
","\\xd81bfd6f33e3ba408a40d330c9d71b36","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 99""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,2,1795878247842,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,3,1795878247842,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,4,1795878247842,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,5,1795878247842,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,6,1795878247842,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,7,1795878247842,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,8,1795878247842,user,"
text
","\\x3ceba73ac5e161b8ef9cf21aba28b4d1","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 8""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-08,9,1795878247842,user,"
text
","\\x097b289507798e5dfe4d8dff6fbc62db","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 9""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,0,1795878247896,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,1,1795878247896,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,10,1795878247896,user,"
text
","\\xaf6e2160acbec85fe7ab36d2b7bdc137","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 10""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,11,1795878247896,user,"
text
","\\x8b182bab8db416cb537bfae187c9de2b","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 11""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,12,1795878247912,user,"
text
","\\x77f0179890a90d20d99877e11a9e6e88","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 9 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,2,1795878247896,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,3,1795878247896,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,4,1795878247896,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,5,1795878247896,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,6,1795878247896,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,7,1795878247896,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,8,1795878247896,user,"
text
","\\x3ceba73ac5e161b8ef9cf21aba28b4d1","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 8""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-09,9,1795878247896,user,"
text
","\\x097b289507798e5dfe4d8dff6fbc62db","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 9""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,0,1795878247923,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,1,1795878247923,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,10,1795878247923,user,"
text
","\\xaf6e2160acbec85fe7ab36d2b7bdc137","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 10""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,11,1795878247923,user,"
text
","\\x8b182bab8db416cb537bfae187c9de2b","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 11""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,12,1795878247923,user,"
text
","\\x55fbf3b6cc77ae734a139f7656de4c30","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 12""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,13,1795878247950,user,"
text
","\\xd81bfd6f33e3ba408a40d330c9d71b36","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 99""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,2,1795878247923,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,3,1795878247923,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,4,1795878247923,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,5,1795878247923,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,6,1795878247923,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,7,1795878247923,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,8,1795878247923,user,"
text
","\\x3ceba73ac5e161b8ef9cf21aba28b4d1","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 8""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-10,9,1795878247923,user,"
text
","\\x097b289507798e5dfe4d8dff6fbc62db","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 9""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,0,1795878247960,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,1,1795878247960,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,10,1795878247960,user,"
text
","\\xaf6e2160acbec85fe7ab36d2b7bdc137","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 10""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,11,1795878247960,user,"
text
","\\x8b182bab8db416cb537bfae187c9de2b","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 11""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,12,1795878247960,user,"
text
","\\x55fbf3b6cc77ae734a139f7656de4c30","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 12""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,13,1795878247960,user,"
text
","\\x933c83e29e5c797c95b9865d0a646ea8","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 13""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,14,1795878247977,user,"
text
","\\xc15132bc1e09e3d634739e05b4a655e4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 11 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,2,1795878247960,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,3,1795878247960,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,4,1795878247960,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,5,1795878247960,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,6,1795878247960,user,"
text
","\\xee8929cdc4c73b36f133023c91a961ff","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 6""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,7,1795878247960,user,"
text
","\\x971e27fc389cd448d81a022ecef0a54a","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 7""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,8,1795878247960,user,"
text
","\\x3ceba73ac5e161b8ef9cf21aba28b4d1","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 8""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agent-11,9,1795878247960,user,"
text
","\\x097b289507798e5dfe4d8dff6fbc62db","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 9""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,0,1795878247667,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,1,1795878247667,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,2,1795878247667,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,3,1795878247667,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,4,1795878247667,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,5,1795878247667,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,6,1795878247681,user,"
text
","\\x9d8ff0d0459cc550a976232723c74f9e","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 3 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,0,1795878247667,user,"
text
","\\x26798d3f5dfa7d8f24e453443a4e3956","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,1,1795878247667,user,"
text
","\\xe8e75a52ab5a85f0b1997e6145bbdbc4","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,2,1795878247667,user,"
text
","\\xf45338136ee26eb1a45ec0d84d7742ba","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 2""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,3,1795878247667,user,"
text
","\\x7d785305f1f178c6d38bcd5d139c4349","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 3""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,4,1795878247667,user,"
text
","\\x1089b7984d7c64aa97ecdcbbfe3a9c20","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 4""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,5,1795878247667,user,"
text
","\\xc24f43be8e92c955fe1bc080b1e3c99c","{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 5""}]}")'::kode_messages).*;
INSERT INTO kode_messages SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,6,1795878247681,user,"
text
","\\x9d8ff0d0459cc550a976232723c74f9e","{""role"":""user"",""content"":[{""type"":""text"",""text"":""sp\\u00e4te 3 \\ud83d\\ude00 \\ud83d lone""}]}")'::kode_messages).*;
INSERT INTO kode_tool_calls SELECT ('("rich é/''quoted''\\",0,1767258000001,call_1,search,COMPLETED,f,t,"\\x89ed3def6639c62aafb8b376582aff6a","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":true,""decision"":""allow"",""decidedBy"":""alice"",""decidedAt"":1767258000000,""note"":""fine"",""meta"":{""rule"":7}},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('("rich é/''quoted''\\",1,1767258000002,call_2,search,APPROVAL_REQUIRED,f,f,"\\x643cc592221e82ae55c3662a60419a14","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""APPROVAL_REQUIRED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":false,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('("rich é/''quoted''\\",2,1767258000003,call_3,search,PENDING,f,f,"\\xdfbea734f4ae6010646b868ba7fa5521","{""id"":""call_3"",""name"":""search"",""input"":{""q"":""query 3""},""state"":""PENDING"",""approval"":{""required"":false},""result"":{""rows"":[3]},""isError"":false,""startedAt"":1767258000003,""completedAt"":1767258000008,""durationMs"":5,""createdAt"":1767258000003,""updatedAt"":1767258000008,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000003},{""state"":""COMPLETED"",""timestamp"":1767258000008,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-00,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-00,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-01,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-01,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-02,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-02,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-03,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-03,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-04,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-04,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-05,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-05,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-06,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-06,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-07,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-07,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-08,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-08,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-09,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-09,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-10,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-10,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-11,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agent-11,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,0,1767258000001,call_1,search,COMPLETED,f,f,"\\xac09ea9df74da3945395bee929f2d143","{""id"":""call_1"",""name"":""search"",""input"":{""q"":""query 1""},""state"":""COMPLETED"",""approval"":{""required"":false},""result"":{""rows"":[1]},""isError"":false,""startedAt"":1767258000001,""completedAt"":1767258000006,""durationMs"":5,""createdAt"":1767258000001,""updatedAt"":1767258000006,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000001},{""state"":""COMPLETED"",""timestamp"":1767258000006,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_tool_calls SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,1,1767258000002,call_2,search,FAILED,t,f,"\\x062219a4e3e68caadf258a86467d989e","{""id"":""call_2"",""name"":""search"",""input"":{""q"":""query 2""},""state"":""FAILED"",""approval"":{""required"":false},""result"":{""rows"":[2]},""isError"":true,""startedAt"":1767258000002,""completedAt"":1767258000007,""durationMs"":5,""createdAt"":1767258000002,""updatedAt"":1767258000007,""auditTrail"":[{""state"":""PENDING"",""timestamp"":1767258000002},{""state"":""COMPLETED"",""timestamp"":1767258000007,""note"":""ok""}]}")'::kode_tool_calls).*;
INSERT INTO kode_docs SELECT ('("rich é/''quoted''\\",compressions,"\\x35b9df2f64b9135b374f8c0871b0b250",cmp-1,1767258000000,"\\xb702aab5879f5710547175b9726c6a64","{""id"":""cmp-1"",""windowId"":""win-1"",""config"":{""model"":""gpt-4o"",""prompt"":""Summarise"",""threshold"":50000},""summary"":""They met."",""ratio"":0.35,""recoveredFiles"":[""policy/airline.md""],""timestamp"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('("rich é/''quoted''\\",media,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x7fc9426a45842834d5d62d4122968d2e","[{""key"":""k1"",""provider"":""openai"",""mimeType"":""image/png"",""sizeBytes"":8589934592,""fileId"":""file-1"",""createdAt"":1767258000000},{""key"":""k2"",""provider"":""openai"",""mimeType"":""image/png"",""sizeBytes"":8589934592,""fileId"":""file-1"",""createdAt"":1767258000000}]")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('("rich é/''quoted''\\",recovered,"\\x475278e00cade4883dcd411609cb0f46","[""policy/airline.md"",1767258000000]",1767258000000,"\\x9cf11c6c84313e50d3912095fafcbf5e","{""path"":""policy/airline.md"",""content"":""# Policy\\n"",""mtime"":1767258000000.25,""timestamp"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('("rich é/''quoted''\\",snapshots,"\\x540daf00197767d024e1aee3c7b9cfdf",s1,1767258000000,"\\x997ac283d0e8e7e13b8a6f654cb41e49","{""id"":""s1"",""messages"":[{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]},{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}],""lastSfpIndex"":1,""lastBookmark"":{""seq"":5,""timestamp"":1767258000000},""createdAt"":1767258000000,""metadata"":{""reason"":""test""}}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('("rich é/''quoted''\\",snapshots,"\\x5bf869ff0287a43352bfa5713396b6bb",s2,1767258000005,"\\xcc0107853d013b4cd50584f8b4fed317","{""id"":""s2"",""messages"":[{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]},{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}],""lastSfpIndex"":1,""lastBookmark"":{""seq"":5,""timestamp"":1767258000000},""createdAt"":1767258000005,""metadata"":{""reason"":""test""}}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('("rich é/''quoted''\\",windows,"\\xd1c9c50061ccf49ad8cf21c225569729",win-1,1767258000000,"\\x96aeb837a437362382eb0706d0acbd5d","{""id"":""win-1"",""messages"":[{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 0""}]},{""role"":""user"",""content"":[{""type"":""text"",""text"":""message 1""}]}],""events"":[{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}},{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}],""stats"":{""messageCount"":2,""tokenCount"":40,""eventCount"":2},""timestamp"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-00,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-01,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-02,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-03,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-04,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-05,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-06,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-07,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-08,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-09,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-10,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agent-11,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agt-01m8hayqqs79j760vc04dm33dx,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_docs SELECT ('(agt-01m8hayqqs79j760vc04dm33dy,todos,"\\xcae66941d9efbd404e4d88758ea67670","",0,"\\x2780f7ec5af6dd6f388e93728b725652","{""todos"":[{""id"":""t0"",""title"":""one"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000},{""id"":""t1"",""title"":""two"",""status"":""pending"",""createdAt"":1767258000000,""updatedAt"":1767258000000}],""version"":2,""updatedAt"":1767258000000}")'::kode_docs).*;
INSERT INTO kode_events SELECT ('("only events",1,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('("rich é/''quoted''\\",1,5,monitor,"\\x590a76c5bb9b520430c5d43074e9a7e2","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""monitor"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('("rich é/''quoted''\\",2,5,control,"\\x45b15d4b2b4f10f82ad02f269fdaea9c","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""control"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('("rich é/''quoted''\\",3,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,10,105,progress,"\\xe5f74983969710d1a50e0de0a09be0b6","{""cursor"":105,""bookmark"":{""seq"":105,""timestamp"":1767258000105},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 105""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,11,106,progress,"\\xcd19d9ce64315287e990dc96e75ff9ed","{""cursor"":106,""bookmark"":{""seq"":106,""timestamp"":1767258000106},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 106""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,12,107,progress,"\\xe103ed202e8f59760f992e20440593d3","{""cursor"":107,""bookmark"":{""seq"":107,""timestamp"":1767258000107},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 107""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,13,108,progress,"\\xc3dd568e2053a98b8d21d1e68bc0bc5a","{""cursor"":108,""bookmark"":{""seq"":108,""timestamp"":1767258000108},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 108""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,14,109,progress,"\\x0222ef0efbae4f05d599227c1a7f500a","{""cursor"":109,""bookmark"":{""seq"":109,""timestamp"":1767258000109},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 109""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,15,110,progress,"\\x9b1c3f01094bcbdc556986a3bb5b2eaf","{""cursor"":110,""bookmark"":{""seq"":110,""timestamp"":1767258000110},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 110""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,16,111,progress,"\\xc6c00d8bd6b26976b69d2cfcfcb7300a","{""cursor"":111,""bookmark"":{""seq"":111,""timestamp"":1767258000111},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 111""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,17,112,progress,"\\x86dd8694a58b35b4519fbdea7a587cea","{""cursor"":112,""bookmark"":{""seq"":112,""timestamp"":1767258000112},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 112""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,18,113,progress,"\\x991fa01541f38c61ec29aa8740a6ac69","{""cursor"":113,""bookmark"":{""seq"":113,""timestamp"":1767258000113},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 113""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,19,114,progress,"\\x56d83c238f742ec9d394d36ed145291d","{""cursor"":114,""bookmark"":{""seq"":114,""timestamp"":1767258000114},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 114""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,20,115,progress,"\\xac92a6fec90b99667a57460de5760173","{""cursor"":115,""bookmark"":{""seq"":115,""timestamp"":1767258000115},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 115""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,21,116,progress,"\\xac50a23d851f80d8009614d3751391d5","{""cursor"":116,""bookmark"":{""seq"":116,""timestamp"":1767258000116},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 116""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,22,117,progress,"\\xc514728120be08e7fe71d6f22efed183","{""cursor"":117,""bookmark"":{""seq"":117,""timestamp"":1767258000117},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 117""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,23,118,progress,"\\x5914b6af3d6d7de4bb124411204768a9","{""cursor"":118,""bookmark"":{""seq"":118,""timestamp"":1767258000118},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 118""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,24,119,progress,"\\xcd3392dd68ab76ee5760bee3c7ca0dbe","{""cursor"":119,""bookmark"":{""seq"":119,""timestamp"":1767258000119},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 119""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,5,100,progress,"\\xe81bb72cfa2d8bb68c96126e0dd1f208","{""cursor"":100,""bookmark"":{""seq"":100,""timestamp"":1767258000100},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 100""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,6,101,progress,"\\xfd8bdcdab323d9e66e08eb8476187303","{""cursor"":101,""bookmark"":{""seq"":101,""timestamp"":1767258000101},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 101""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,7,102,progress,"\\xba5704423a708bc6d2d58a7a07f2cce7","{""cursor"":102,""bookmark"":{""seq"":102,""timestamp"":1767258000102},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 102""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,8,103,progress,"\\xbb41a6c23265b2418099e93ce20b878d","{""cursor"":103,""bookmark"":{""seq"":103,""timestamp"":1767258000103},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 103""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-00,9,104,progress,"\\xb6eb9c080a20499b2c4ad0aca163d387","{""cursor"":104,""bookmark"":{""seq"":104,""timestamp"":1767258000104},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 104""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-01,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-01,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-01,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-01,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-01,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-02,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-02,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-02,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-02,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-02,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-02,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-03,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-03,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-03,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-03,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-03,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-03,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-03,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-04,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-05,9,8,progress,"\\x6d13f8ac70a3c5991c14309c13d5357c","{""cursor"":8,""bookmark"":{""seq"":8,""timestamp"":1767258000008},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 8""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,10,9,progress,"\\x98258b157af9124a18fce60288d8821f","{""cursor"":9,""bookmark"":{""seq"":9,""timestamp"":1767258000009},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 9""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-06,9,8,progress,"\\x6d13f8ac70a3c5991c14309c13d5357c","{""cursor"":8,""bookmark"":{""seq"":8,""timestamp"":1767258000008},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 8""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,10,9,progress,"\\x98258b157af9124a18fce60288d8821f","{""cursor"":9,""bookmark"":{""seq"":9,""timestamp"":1767258000009},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 9""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,11,10,progress,"\\x4fb40e2a4e49425502a5ff2cb6d846aa","{""cursor"":10,""bookmark"":{""seq"":10,""timestamp"":1767258000010},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 10""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-07,9,8,progress,"\\x6d13f8ac70a3c5991c14309c13d5357c","{""cursor"":8,""bookmark"":{""seq"":8,""timestamp"":1767258000008},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 8""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,10,9,progress,"\\x98258b157af9124a18fce60288d8821f","{""cursor"":9,""bookmark"":{""seq"":9,""timestamp"":1767258000009},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 9""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,11,10,progress,"\\x4fb40e2a4e49425502a5ff2cb6d846aa","{""cursor"":10,""bookmark"":{""seq"":10,""timestamp"":1767258000010},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 10""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,12,11,progress,"\\xb7941195fb37a2cc7757698b4da2bef8","{""cursor"":11,""bookmark"":{""seq"":11,""timestamp"":1767258000011},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 11""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-08,9,8,progress,"\\x6d13f8ac70a3c5991c14309c13d5357c","{""cursor"":8,""bookmark"":{""seq"":8,""timestamp"":1767258000008},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 8""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,10,9,progress,"\\x98258b157af9124a18fce60288d8821f","{""cursor"":9,""bookmark"":{""seq"":9,""timestamp"":1767258000009},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 9""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,11,10,progress,"\\x4fb40e2a4e49425502a5ff2cb6d846aa","{""cursor"":10,""bookmark"":{""seq"":10,""timestamp"":1767258000010},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 10""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,12,11,progress,"\\xb7941195fb37a2cc7757698b4da2bef8","{""cursor"":11,""bookmark"":{""seq"":11,""timestamp"":1767258000011},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 11""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,13,12,progress,"\\x38de1c96839995ab69dfaaae538fccf7","{""cursor"":12,""bookmark"":{""seq"":12,""timestamp"":1767258000012},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 12""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-09,9,8,progress,"\\x6d13f8ac70a3c5991c14309c13d5357c","{""cursor"":8,""bookmark"":{""seq"":8,""timestamp"":1767258000008},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 8""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,10,9,progress,"\\x98258b157af9124a18fce60288d8821f","{""cursor"":9,""bookmark"":{""seq"":9,""timestamp"":1767258000009},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 9""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,11,10,progress,"\\x4fb40e2a4e49425502a5ff2cb6d846aa","{""cursor"":10,""bookmark"":{""seq"":10,""timestamp"":1767258000010},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 10""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,12,11,progress,"\\xb7941195fb37a2cc7757698b4da2bef8","{""cursor"":11,""bookmark"":{""seq"":11,""timestamp"":1767258000011},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 11""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,13,12,progress,"\\x38de1c96839995ab69dfaaae538fccf7","{""cursor"":12,""bookmark"":{""seq"":12,""timestamp"":1767258000012},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 12""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,14,13,progress,"\\xaa351ab1c68b71cabb8cc9fca77da0ef","{""cursor"":13,""bookmark"":{""seq"":13,""timestamp"":1767258000013},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 13""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-10,9,8,progress,"\\x6d13f8ac70a3c5991c14309c13d5357c","{""cursor"":8,""bookmark"":{""seq"":8,""timestamp"":1767258000008},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 8""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,1,0,progress,"\\xbe7c40dffc497be8c3285aa700ce78b5","{""cursor"":0,""bookmark"":{""seq"":0,""timestamp"":1767258000000},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 0""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,10,9,progress,"\\x98258b157af9124a18fce60288d8821f","{""cursor"":9,""bookmark"":{""seq"":9,""timestamp"":1767258000009},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 9""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,11,10,progress,"\\x4fb40e2a4e49425502a5ff2cb6d846aa","{""cursor"":10,""bookmark"":{""seq"":10,""timestamp"":1767258000010},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 10""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,12,11,progress,"\\xb7941195fb37a2cc7757698b4da2bef8","{""cursor"":11,""bookmark"":{""seq"":11,""timestamp"":1767258000011},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 11""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,13,12,progress,"\\x38de1c96839995ab69dfaaae538fccf7","{""cursor"":12,""bookmark"":{""seq"":12,""timestamp"":1767258000012},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 12""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,14,13,progress,"\\xaa351ab1c68b71cabb8cc9fca77da0ef","{""cursor"":13,""bookmark"":{""seq"":13,""timestamp"":1767258000013},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 13""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,15,14,progress,"\\x6fea2a9e3b939f511ee92300a39fa81a","{""cursor"":14,""bookmark"":{""seq"":14,""timestamp"":1767258000014},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 14""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,2,1,progress,"\\x7f71dfc07667416dbf2c4242d7602e34","{""cursor"":1,""bookmark"":{""seq"":1,""timestamp"":1767258000001},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 1""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,3,2,progress,"\\x7fd1b22d088331c08e808ca768cc0219","{""cursor"":2,""bookmark"":{""seq"":2,""timestamp"":1767258000002},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 2""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,4,3,progress,"\\xe9769dcc194a1407396bf305808f2561","{""cursor"":3,""bookmark"":{""seq"":3,""timestamp"":1767258000003},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 3""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,5,4,progress,"\\x8702131c384150fff22b6ba711499437","{""cursor"":4,""bookmark"":{""seq"":4,""timestamp"":1767258000004},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 4""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,6,5,progress,"\\xbdbbffbc421c0b7bd46c0e98bcef8c7d","{""cursor"":5,""bookmark"":{""seq"":5,""timestamp"":1767258000005},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 5""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,7,6,progress,"\\x4359d7e85a61308b538cce431d4c3bb9","{""cursor"":6,""bookmark"":{""seq"":6,""timestamp"":1767258000006},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 6""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,8,7,progress,"\\xcb667e913e856d761eacaf4f6f66132d","{""cursor"":7,""bookmark"":{""seq"":7,""timestamp"":1767258000007},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 7""}}")'::kode_events).*;
INSERT INTO kode_events SELECT ('(agent-11,9,8,progress,"\\x6d13f8ac70a3c5991c14309c13d5357c","{""cursor"":8,""bookmark"":{""seq"":8,""timestamp"":1767258000008},""event"":{""channel"":""progress"",""type"":""text_chunk"",""step"":0,""delta"":""part 8""}}")'::kode_events).*;
INSERT INTO kode_leases SELECT ('(agent-01,"",1,-infinity)'::kode_leases).*;
INSERT INTO kode_leases SELECT ('(gone-1,"",1,-infinity)'::kode_leases).*;
