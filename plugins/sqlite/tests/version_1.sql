BEGIN TRANSACTION;
CREATE TABLE kode_agents (
            agent_id TEXT NOT NULL PRIMARY KEY,
            message_version INTEGER NOT NULL,
            message_count INTEGER NOT NULL,
            tool_call_version INTEGER NOT NULL,
            tool_call_count INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            last_op TEXT NOT NULL,
            template_id TEXT,
            created_at INTEGER
        ) WITHOUT ROWID;
INSERT INTO "kode_agents" VALUES('agt-0',2174377473402792,13,1221305188435204,6,1795877344753,'796a18ffe727-0','writer',1700000000000);
INSERT INTO "kode_agents" VALUES('agt-1',3361123774038394,14,3401895818697195,6,1795877344761,'796a18ffe727-1','coder',1700000000001);
INSERT INTO "kode_agents" VALUES('agt-2',3747881333774369,13,1101298215252095,6,1795877344773,'796a18ffe727-2','writer',1700000000002);
INSERT INTO "kode_agents" VALUES('agt-3',1267553643968688,14,2389610013225517,6,1795877344776,'796a18ffe727-3','coder',1700000000003);
INSERT INTO "kode_agents" VALUES('agt-4',734355937926021,13,1129730971764869,6,1795877344789,'796a18ffe727-4','writer',1700000000004);
INSERT INTO "kode_agents" VALUES('agt-5',2201421365969810,13,1936778827577613,6,1795877344797,'796a18ffe727-5','coder',1700000000005);
INSERT INTO "kode_agents" VALUES('no-info',205264843227646,1,0,0,1795877344844,'796a18ffe727-11',NULL,NULL);
CREATE TABLE kode_docs (
            agent_id TEXT NOT NULL,
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            time INTEGER NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        );
INSERT INTO "kode_docs" VALUES('agt-0','todos','',0,'{"todos":[],"version":0,"updatedAt":1767258000000}',X'5973E89B9FFFE53C42975BE79EF22F8A');
INSERT INTO "kode_docs" VALUES('agt-1','todos','',0,'{"todos":[],"version":0,"updatedAt":1767258000000}',X'5973E89B9FFFE53C42975BE79EF22F8A');
INSERT INTO "kode_docs" VALUES('agt-2','todos','',0,'{"todos":[],"version":0,"updatedAt":1767258000000}',X'5973E89B9FFFE53C42975BE79EF22F8A');
INSERT INTO "kode_docs" VALUES('agt-3','todos','',0,'{"todos":[],"version":0,"updatedAt":1767258000000}',X'5973E89B9FFFE53C42975BE79EF22F8A');
INSERT INTO "kode_docs" VALUES('agt-4','todos','',0,'{"todos":[],"version":0,"updatedAt":1767258000000}',X'5973E89B9FFFE53C42975BE79EF22F8A');
INSERT INTO "kode_docs" VALUES('agt-5','todos','',0,'{"todos":[],"version":0,"updatedAt":1767258000000}',X'5973E89B9FFFE53C42975BE79EF22F8A');
INSERT INTO "kode_docs" VALUES('agt-0','snapshots','sfp-1',1767258000000,'{"id":"sfp-1","messages":[{"role":"user","content":[{"type":"text","text":"message 0"}]},{"role":"user","content":[{"type":"text","text":"message 1"}]}],"lastSfpIndex":1,"lastBookmark":{"seq":5,"timestamp":1767258000000},"createdAt":1767258000000,"metadata":{"reason":"test"}}',X'C6D4D501CA53997BE59B0C5BB64FB34B');
INSERT INTO "kode_docs" VALUES('agt-0','media','',0,'[{"key":"sha256:00","provider":"openai","mimeType":"image/png","sizeBytes":8589934592,"fileId":"file-1","createdAt":1767258000000}]',X'1558B2A238AED63250F1F8376422C694');
INSERT INTO "kode_docs" VALUES('agt-0','windows','win-1',1767258000000,'{"id":"win-1","messages":[{"role":"user","content":[{"type":"text","text":"message 0"}]},{"role":"user","content":[{"type":"text","text":"message 1"}]}],"events":[{"cursor":0,"bookmark":{"seq":0,"timestamp":1767258000000},"event":{"channel":"progress","type":"text_chunk","step":0,"delta":"part 0"}},{"cursor":1,"bookmark":{"seq":1,"timestamp":1767258000001},"event":{"channel":"progress","type":"text_chunk","step":0,"delta":"part 1"}}],"stats":{"messageCount":2,"tokenCount":40,"eventCount":2},"timestamp":1767258000000}',X'96AEB837A437362382EB0706D0ACBD5D');
INSERT INTO "kode_docs" VALUES('agt-0','compressions','cmp-1',1767258000000,'{"id":"cmp-1","windowId":"win-1","config":{"model":"gpt-4o","prompt":"Summarise","threshold":50000},"summary":"They met.","ratio":0.35,"recoveredFiles":["policy/airline.md"],"timestamp":1767258000000}',X'B702AAB5879F5710547175B9726C6A64');
INSERT INTO "kode_docs" VALUES('agt-0','recovered','["policy/airline.md",1767258000000]',1767258000000,'{"path":"policy/airline.md","content":"# Policy\n","mtime":1767258000000.25,"timestamp":1767258000000}',X'9CF11C6C84313E50D3912095FAFCBF5E');
CREATE TABLE kode_events (
            "offset" INTEGER PRIMARY KEY AUTOINCREMENT,
            agent_id TEXT NOT NULL,
            seq INTEGER NOT NULL,
            channel TEXT NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        );
INSERT INTO "kode_events" VALUES(1,'agt-0',0,'progress','{"cursor":0,"bookmark":{"seq":0,"timestamp":1700000000000},"event":{"channel":"progress","type":"e","n":0}}',X'A4D0346918611663BA5595717897226E');
INSERT INTO "kode_events" VALUES(2,'agt-0',1,'progress','{"cursor":1,"bookmark":{"seq":1,"timestamp":1700000000001},"event":{"channel":"progress","type":"e","n":1}}',X'FE2E2DCA837A3F8E1F4C1B3F07334296');
INSERT INTO "kode_events" VALUES(3,'agt-0',2,'monitor','{"cursor":2,"bookmark":{"seq":2,"timestamp":1700000000002},"event":{"channel":"monitor","type":"e","n":2}}',X'9A641A9ED98816C2FE1FF055594C496A');
INSERT INTO "kode_events" VALUES(4,'agt-0',3,'control','{"cursor":3,"bookmark":{"seq":3,"timestamp":1700000000003},"event":{"channel":"control","type":"e","n":3}}',X'CF708E76B89013D31A15423B8E2C96EB');
INSERT INTO "kode_events" VALUES(5,'agt-0',4,'progress','{"cursor":4,"bookmark":{"seq":4,"timestamp":1700000000004},"event":{"channel":"progress","type":"e","n":4}}',X'8865D7CDC76AC92F8ED40152DACA3F91');
INSERT INTO "kode_events" VALUES(6,'agt-0',5,'progress','{"cursor":5,"bookmark":{"seq":5,"timestamp":1700000000005},"event":{"channel":"progress","type":"e","n":5}}',X'9C48EC86B9758B014D7E99127830586F');
INSERT INTO "kode_events" VALUES(7,'agt-0',6,'monitor','{"cursor":6,"bookmark":{"seq":6,"timestamp":1700000000006},"event":{"channel":"monitor","type":"e","n":6}}',X'294D2AD48036014E9B58543AF9994DC8');
INSERT INTO "kode_events" VALUES(8,'agt-0',7,'control','{"cursor":7,"bookmark":{"seq":7,"timestamp":1700000000007},"event":{"channel":"control","type":"e","n":7}}',X'8DA8FAE54386839595E88E8B4ACEF5C7');
INSERT INTO "kode_events" VALUES(9,'agt-0',8,'progress','{"cursor":8,"bookmark":{"seq":8,"timestamp":1700000000008},"event":{"channel":"progress","type":"e","n":8}}',X'97BE17353D41B8C6723A17B013381AB4');
INSERT INTO "kode_events" VALUES(10,'agt-0',9,'progress','{"cursor":9,"bookmark":{"seq":9,"timestamp":1700000000009},"event":{"channel":"progress","type":"e","n":9}}',X'2546D0D97CB06732E581D6DED43D71B2');
INSERT INTO "kode_events" VALUES(11,'agt-0',10,'monitor','{"cursor":10,"bookmark":{"seq":10,"timestamp":1700000000010},"event":{"channel":"monitor","type":"e","n":10}}',X'5A98401FACE9E0BE377195AD8B49C59B');
INSERT INTO "kode_events" VALUES(12,'agt-0',11,'control','{"cursor":11,"bookmark":{"seq":11,"timestamp":1700000000011},"event":{"channel":"control","type":"e","n":11}}',X'2669A951DC672369E1410C863517E18D');
INSERT INTO "kode_events" VALUES(13,'agt-1',0,'progress','{"cursor":0,"bookmark":{"seq":0,"timestamp":1700000000000},"event":{"channel":"progress","type":"e","n":0}}',X'A4D0346918611663BA5595717897226E');
INSERT INTO "kode_events" VALUES(14,'agt-1',1,'progress','{"cursor":1,"bookmark":{"seq":1,"timestamp":1700000000001},"event":{"channel":"progress","type":"e","n":1}}',X'FE2E2DCA837A3F8E1F4C1B3F07334296');
INSERT INTO "kode_events" VALUES(15,'agt-1',2,'monitor','{"cursor":2,"bookmark":{"seq":2,"timestamp":1700000000002},"event":{"channel":"monitor","type":"e","n":2}}',X'9A641A9ED98816C2FE1FF055594C496A');
INSERT INTO "kode_events" VALUES(16,'agt-1',3,'control','{"cursor":3,"bookmark":{"seq":3,"timestamp":1700000000003},"event":{"channel":"control","type":"e","n":3}}',X'CF708E76B89013D31A15423B8E2C96EB');
INSERT INTO "kode_events" VALUES(17,'agt-1',4,'progress','{"cursor":4,"bookmark":{"seq":4,"timestamp":1700000000004},"event":{"channel":"progress","type":"e","n":4}}',X'8865D7CDC76AC92F8ED40152DACA3F91');
INSERT INTO "kode_events" VALUES(18,'agt-1',5,'progress','{"cursor":5,"bookmark":{"seq":5,"timestamp":1700000000005},"event":{"channel":"progress","type":"e","n":5}}',X'9C48EC86B9758B014D7E99127830586F');
INSERT INTO "kode_events" VALUES(19,'agt-1',6,'monitor','{"cursor":6,"bookmark":{"seq":6,"timestamp":1700000000006},"event":{"channel":"monitor","type":"e","n":6}}',X'294D2AD48036014E9B58543AF9994DC8');
INSERT INTO "kode_events" VALUES(20,'agt-1',7,'control','{"cursor":7,"bookmark":{"seq":7,"timestamp":1700000000007},"event":{"channel":"control","type":"e","n":7}}',X'8DA8FAE54386839595E88E8B4ACEF5C7');
INSERT INTO "kode_events" VALUES(21,'agt-1',8,'progress','{"cursor":8,"bookmark":{"seq":8,"timestamp":1700000000008},"event":{"channel":"progress","type":"e","n":8}}',X'97BE17353D41B8C6723A17B013381AB4');
INSERT INTO "kode_events" VALUES(22,'agt-1',9,'progress','{"cursor":9,"bookmark":{"seq":9,"timestamp":1700000000009},"event":{"channel":"progress","type":"e","n":9}}',X'2546D0D97CB06732E581D6DED43D71B2');
INSERT INTO "kode_events" VALUES(23,'agt-1',10,'monitor','{"cursor":10,"bookmark":{"seq":10,"timestamp":1700000000010},"event":{"channel":"monitor","type":"e","n":10}}',X'5A98401FACE9E0BE377195AD8B49C59B');
INSERT INTO "kode_events" VALUES(24,'agt-1',11,'control','{"cursor":11,"bookmark":{"seq":11,"timestamp":1700000000011},"event":{"channel":"control","type":"e","n":11}}',X'2669A951DC672369E1410C863517E18D');
INSERT INTO "kode_events" VALUES(25,'agt-2',0,'progress','{"cursor":0,"bookmark":{"seq":0,"timestamp":1700000000000},"event":{"channel":"progress","type":"e","n":0}}',X'A4D0346918611663BA5595717897226E');
INSERT INTO "kode_events" VALUES(26,'agt-2',1,'progress','{"cursor":1,"bookmark":{"seq":1,"timestamp":1700000000001},"event":{"channel":"progress","type":"e","n":1}}',X'FE2E2DCA837A3F8E1F4C1B3F07334296');
INSERT INTO "kode_events" VALUES(27,'agt-2',2,'monitor','{"cursor":2,"bookmark":{"seq":2,"timestamp":1700000000002},"event":{"channel":"monitor","type":"e","n":2}}',X'9A641A9ED98816C2FE1FF055594C496A');
INSERT INTO "kode_events" VALUES(28,'agt-2',3,'control','{"cursor":3,"bookmark":{"seq":3,"timestamp":1700000000003},"event":{"channel":"control","type":"e","n":3}}',X'CF708E76B89013D31A15423B8E2C96EB');
INSERT INTO "kode_events" VALUES(29,'agt-2',4,'progress','{"cursor":4,"bookmark":{"seq":4,"timestamp":1700000000004},"event":{"channel":"progress","type":"e","n":4}}',X'8865D7CDC76AC92F8ED40152DACA3F91');
INSERT INTO "kode_events" VALUES(30,'agt-2',5,'progress','{"cursor":5,"bookmark":{"seq":5,"timestamp":1700000000005},"event":{"channel":"progress","type":"e","n":5}}',X'9C48EC86B9758B014D7E99127830586F');
INSERT INTO "kode_events" VALUES(31,'agt-2',6,'monitor','{"cursor":6,"bookmark":{"seq":6,"timestamp":1700000000006},"event":{"channel":"monitor","type":"e","n":6}}',X'294D2AD48036014E9B58543AF9994DC8');
INSERT INTO "kode_events" VALUES(32,'agt-2',7,'control','{"cursor":7,"bookmark":{"seq":7,"timestamp":1700000000007},"event":{"channel":"control","type":"e","n":7}}',X'8DA8FAE54386839595E88E8B4ACEF5C7');
INSERT INTO "kode_events" VALUES(33,'agt-2',8,'progress','{"cursor":8,"bookmark":{"seq":8,"timestamp":1700000000008},"event":{"channel":"progress","type":"e","n":8}}',X'97BE17353D41B8C6723A17B013381AB4');
INSERT INTO "kode_events" VALUES(34,'agt-2',9,'progress','{"cursor":9,"bookmark":{"seq":9,"timestamp":1700000000009},"event":{"channel":"progress","type":"e","n":9}}',X'2546D0D97CB06732E581D6DED43D71B2');
INSERT INTO "kode_events" VALUES(35,'agt-2',10,'monitor','{"cursor":10,"bookmark":{"seq":10,"timestamp":1700000000010},"event":{"channel":"monitor","type":"e","n":10}}',X'5A98401FACE9E0BE377195AD8B49C59B');
INSERT INTO "kode_events" VALUES(36,'agt-2',11,'control','{"cursor":11,"bookmark":{"seq":11,"timestamp":1700000000011},"event":{"channel":"control","type":"e","n":11}}',X'2669A951DC672369E1410C863517E18D');
INSERT INTO "kode_events" VALUES(37,'agt-3',0,'progress','{"cursor":0,"bookmark":{"seq":0,"timestamp":1700000000000},"event":{"channel":"progress","type":"e","n":0}}',X'A4D0346918611663BA5595717897226E');
INSERT INTO "kode_events" VALUES(38,'agt-3',1,'progress','{"cursor":1,"bookmark":{"seq":1,"timestamp":1700000000001},"event":{"channel":"progress","type":"e","n":1}}',X'FE2E2DCA837A3F8E1F4C1B3F07334296');
INSERT INTO "kode_events" VALUES(39,'agt-3',2,'monitor','{"cursor":2,"bookmark":{"seq":2,"timestamp":1700000000002},"event":{"channel":"monitor","type":"e","n":2}}',X'9A641A9ED98816C2FE1FF055594C496A');
INSERT INTO "kode_events" VALUES(40,'agt-3',3,'control','{"cursor":3,"bookmark":{"seq":3,"timestamp":1700000000003},"event":{"channel":"control","type":"e","n":3}}',X'CF708E76B89013D31A15423B8E2C96EB');
INSERT INTO "kode_events" VALUES(41,'agt-3',4,'progress','{"cursor":4,"bookmark":{"seq":4,"timestamp":1700000000004},"event":{"channel":"progress","type":"e","n":4}}',X'8865D7CDC76AC92F8ED40152DACA3F91');
INSERT INTO "kode_events" VALUES(42,'agt-3',5,'progress','{"cursor":5,"bookmark":{"seq":5,"timestamp":1700000000005},"event":{"channel":"progress","type":"e","n":5}}',X'9C48EC86B9758B014D7E99127830586F');
INSERT INTO "kode_events" VALUES(43,'agt-3',6,'monitor','{"cursor":6,"bookmark":{"seq":6,"timestamp":1700000000006},"event":{"channel":"monitor","type":"e","n":6}}',X'294D2AD48036014E9B58543AF9994DC8');
INSERT INTO "kode_events" VALUES(44,'agt-3',7,'control','{"cursor":7,"bookmark":{"seq":7,"timestamp":1700000000007},"event":{"channel":"control","type":"e","n":7}}',X'8DA8FAE54386839595E88E8B4ACEF5C7');
INSERT INTO "kode_events" VALUES(45,'agt-3',8,'progress','{"cursor":8,"bookmark":{"seq":8,"timestamp":1700000000008},"event":{"channel":"progress","type":"e","n":8}}',X'97BE17353D41B8C6723A17B013381AB4');
INSERT INTO "kode_events" VALUES(46,'agt-3',9,'progress','{"cursor":9,"bookmark":{"seq":9,"timestamp":1700000000009},"event":{"channel":"progress","type":"e","n":9}}',X'2546D0D97CB06732E581D6DED43D71B2');
INSERT INTO "kode_events" VALUES(47,'agt-3',10,'monitor','{"cursor":10,"bookmark":{"seq":10,"timestamp":1700000000010},"event":{"channel":"monitor","type":"e","n":10}}',X'5A98401FACE9E0BE377195AD8B49C59B');
INSERT INTO "kode_events" VALUES(48,'agt-3',11,'control','{"cursor":11,"bookmark":{"seq":11,"timestamp":1700000000011},"event":{"channel":"control","type":"e","n":11}}',X'2669A951DC672369E1410C863517E18D');
INSERT INTO "kode_events" VALUES(49,'agt-4',0,'progress','{"cursor":0,"bookmark":{"seq":0,"timestamp":1700000000000},"event":{"channel":"progress","type":"e","n":0}}',X'A4D0346918611663BA5595717897226E');
INSERT INTO "kode_events" VALUES(50,'agt-4',1,'progress','{"cursor":1,"bookmark":{"seq":1,"timestamp":1700000000001},"event":{"channel":"progress","type":"e","n":1}}',X'FE2E2DCA837A3F8E1F4C1B3F07334296');
INSERT INTO "kode_events" VALUES(51,'agt-4',2,'monitor','{"cursor":2,"bookmark":{"seq":2,"timestamp":1700000000002},"event":{"channel":"monitor","type":"e","n":2}}',X'9A641A9ED98816C2FE1FF055594C496A');
INSERT INTO "kode_events" VALUES(52,'agt-4',3,'control','{"cursor":3,"bookmark":{"seq":3,"timestamp":1700000000003},"event":{"channel":"control","type":"e","n":3}}',X'CF708E76B89013D31A15423B8E2C96EB');
INSERT INTO "kode_events" VALUES(53,'agt-4',4,'progress','{"cursor":4,"bookmark":{"seq":4,"timestamp":1700000000004},"event":{"channel":"progress","type":"e","n":4}}',X'8865D7CDC76AC92F8ED40152DACA3F91');
INSERT INTO "kode_events" VALUES(54,'agt-4',5,'progress','{"cursor":5,"bookmark":{"seq":5,"timestamp":1700000000005},"event":{"channel":"progress","type":"e","n":5}}',X'9C48EC86B9758B014D7E99127830586F');
INSERT INTO "kode_events" VALUES(55,'agt-4',6,'monitor','{"cursor":6,"bookmark":{"seq":6,"timestamp":1700000000006},"event":{"channel":"monitor","type":"e","n":6}}',X'294D2AD48036014E9B58543AF9994DC8');
INSERT INTO "kode_events" VALUES(56,'agt-4',7,'control','{"cursor":7,"bookmark":{"seq":7,"timestamp":1700000000007},"event":{"channel":"control","type":"e","n":7}}',X'8DA8FAE54386839595E88E8B4ACEF5C7');
INSERT INTO "kode_events" VALUES(57,'agt-4',8,'progress','{"cursor":8,"bookmark":{"seq":8,"timestamp":1700000000008},"event":{"channel":"progress","type":"e","n":8}}',X'97BE17353D41B8C6723A17B013381AB4');
INSERT INTO "kode_events" VALUES(58,'agt-4',9,'progress','{"cursor":9,"bookmark":{"seq":9,"timestamp":1700000000009},"event":{"channel":"progress","type":"e","n":9}}',X'2546D0D97CB06732E581D6DED43D71B2');
INSERT INTO "kode_events" VALUES(59,'agt-4',10,'monitor','{"cursor":10,"bookmark":{"seq":10,"timestamp":1700000000010},"event":{"channel":"monitor","type":"e","n":10}}',X'5A98401FACE9E0BE377195AD8B49C59B');
INSERT INTO "kode_events" VALUES(60,'agt-4',11,'control','{"cursor":11,"bookmark":{"seq":11,"timestamp":1700000000011},"event":{"channel":"control","type":"e","n":11}}',X'2669A951DC672369E1410C863517E18D');
INSERT INTO "kode_events" VALUES(61,'agt-5',0,'progress','{"cursor":0,"bookmark":{"seq":0,"timestamp":1700000000000},"event":{"channel":"progress","type":"e","n":0}}',X'A4D0346918611663BA5595717897226E');
INSERT INTO "kode_events" VALUES(62,'agt-5',1,'progress','{"cursor":1,"bookmark":{"seq":1,"timestamp":1700000000001},"event":{"channel":"progress","type":"e","n":1}}',X'FE2E2DCA837A3F8E1F4C1B3F07334296');
INSERT INTO "kode_events" VALUES(63,'agt-5',2,'monitor','{"cursor":2,"bookmark":{"seq":2,"timestamp":1700000000002},"event":{"channel":"monitor","type":"e","n":2}}',X'9A641A9ED98816C2FE1FF055594C496A');
INSERT INTO "kode_events" VALUES(64,'agt-5',3,'control','{"cursor":3,"bookmark":{"seq":3,"timestamp":1700000000003},"event":{"channel":"control","type":"e","n":3}}',X'CF708E76B89013D31A15423B8E2C96EB');
INSERT INTO "kode_events" VALUES(65,'agt-5',4,'progress','{"cursor":4,"bookmark":{"seq":4,"timestamp":1700000000004},"event":{"channel":"progress","type":"e","n":4}}',X'8865D7CDC76AC92F8ED40152DACA3F91');
INSERT INTO "kode_events" VALUES(66,'agt-5',5,'progress','{"cursor":5,"bookmark":{"seq":5,"timestamp":1700000000005},"event":{"channel":"progress","type":"e","n":5}}',X'9C48EC86B9758B014D7E99127830586F');
INSERT INTO "kode_events" VALUES(67,'agt-5',6,'monitor','{"cursor":6,"bookmark":{"seq":6,"timestamp":1700000000006},"event":{"channel":"monitor","type":"e","n":6}}',X'294D2AD48036014E9B58543AF9994DC8');
INSERT INTO "kode_events" VALUES(68,'agt-5',7,'control','{"cursor":7,"bookmark":{"seq":7,"timestamp":1700000000007},"event":{"channel":"control","type":"e","n":7}}',X'8DA8FAE54386839595E88E8B4ACEF5C7');
INSERT INTO "kode_events" VALUES(69,'agt-5',8,'progress','{"cursor":8,"bookmark":{"seq":8,"timestamp":1700000000008},"event":{"channel":"progress","type":"e","n":8}}',X'97BE17353D41B8C6723A17B013381AB4');
INSERT INTO "kode_events" VALUES(70,'agt-5',9,'progress','{"cursor":9,"bookmark":{"seq":9,"timestamp":1700000000009},"event":{"channel":"progress","type":"e","n":9}}',X'2546D0D97CB06732E581D6DED43D71B2');
INSERT INTO "kode_events" VALUES(71,'agt-5',10,'monitor','{"cursor":10,"bookmark":{"seq":10,"timestamp":1700000000010},"event":{"channel":"monitor","type":"e","n":10}}',X'5A98401FACE9E0BE377195AD8B49C59B');
INSERT INTO "kode_events" VALUES(72,'agt-5',11,'control','{"cursor":11,"bookmark":{"seq":11,"timestamp":1700000000011},"event":{"channel":"control","type":"e","n":11}}',X'2669A951DC672369E1410C863517E18D');
INSERT INTO "kode_events" VALUES(73,'only-events',0,'progress','{"cursor":0,"bookmark":{"seq":0,"timestamp":1767258000000},"event":{"channel":"progress","type":"text_chunk","step":0,"delta":"part 0"}}',X'BE7C40DFFC497BE8C3285AA700CE78B5');
INSERT INTO "kode_events" VALUES(74,'only-events',1,'progress','{"cursor":1,"bookmark":{"seq":1,"timestamp":1767258000001},"event":{"channel":"progress","type":"text_chunk","step":0,"delta":"part 1"}}',X'7F71DFC07667416DBF2C4242D7602E34');
CREATE TABLE kode_infos (
            agent_id TEXT NOT NULL PRIMARY KEY,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        );
INSERT INTO "kode_infos" VALUES('agt-0','{"agentId":"agt-0","templateId":"writer","createdAt":1700000000000,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"userId":"u-0","plan":"free","n":0}}',X'B81A81B7071536D9F07FC3AAC39FA8DB');
INSERT INTO "kode_infos" VALUES('agt-1','{"agentId":"agt-1","templateId":"coder","createdAt":1700000000001,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"userId":"u-1","plan":"gold","n":1}}',X'83AC0096C069120E2A18F908BFA3C410');
INSERT INTO "kode_infos" VALUES('agt-2','{"agentId":"agt-2","templateId":"writer","createdAt":1700000000002,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"userId":"u-2","plan":"free","n":2}}',X'BA10FBAA6339ACBA957397CB9DFAFA5E');
INSERT INTO "kode_infos" VALUES('agt-3','{"agentId":"agt-3","templateId":"coder","createdAt":1700000000003,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"userId":"u-0","plan":"gold","n":3}}',X'7F31F86CDFF860CA5359F2D79EBD7ACF');
INSERT INTO "kode_infos" VALUES('agt-4','{"agentId":"agt-4","templateId":"writer","createdAt":1700000000004,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"userId":"u-1","plan":"free","n":4}}',X'34D5F3DBF2528C32E423DAB2AC75FD3C');
INSERT INTO "kode_infos" VALUES('agt-5','{"agentId":"agt-5","templateId":"coder","createdAt":1700000000005,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"userId":"u-2","plan":"gold","n":5}}',X'06684B4DFAA894D8B433303577B4F460');
CREATE TABLE kode_leases (
            agent_id TEXT NOT NULL PRIMARY KEY,
            owner TEXT NOT NULL,
            token INTEGER NOT NULL,
            boot TEXT NOT NULL,
            expires INTEGER NOT NULL
        ) WITHOUT ROWID;
CREATE TABLE kode_messages (
            agent_id TEXT NOT NULL,
            position INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            role TEXT NOT NULL,
            content_types TEXT NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        );
INSERT INTO "kode_messages" VALUES('agt-0',0,1795877344746,'user','
text
','{"role":"user","content":[{"type":"text","text":"Hello 0"}]}',X'47BE1DC64F78FB9EAB552C5DA99C8F3A');
INSERT INTO "kode_messages" VALUES('agt-0',1,1795877344746,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 0"},{"type":"tool_use","id":"c0","name":"search","input":{"q":0}}]}',X'8DD3E7558496AFE4A321385027D323C9');
INSERT INTO "kode_messages" VALUES('agt-0',2,1795877344746,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c0","content":"found 0"}]}',X'3EEB9338A083208727762E0ACE3DF237');
INSERT INTO "kode_messages" VALUES('agt-0',3,1795877344746,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 1"},{"type":"tool_use","id":"c1","name":"search","input":{"q":1}}]}',X'FEB636CCD75D0CA2A0563DBDA62A3981');
INSERT INTO "kode_messages" VALUES('agt-0',4,1795877344746,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"found 1"}]}',X'075DEAC20B2D3F2114D140A0DAFA9FE9');
INSERT INTO "kode_messages" VALUES('agt-0',5,1795877344746,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 2"},{"type":"tool_use","id":"c2","name":"search","input":{"q":2}}]}',X'593F0E7E0F48744B2071FB95A8AC4B94');
INSERT INTO "kode_messages" VALUES('agt-0',6,1795877344746,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c2","content":"found 2"}]}',X'96BD4CD0CE96933429C7D6C1C616AAED');
INSERT INTO "kode_messages" VALUES('agt-0',7,1795877344746,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 3"},{"type":"tool_use","id":"c3","name":"search","input":{"q":3}}]}',X'3C3E5F0D13FE42CD8D56038E902413DF');
INSERT INTO "kode_messages" VALUES('agt-0',8,1795877344746,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c3","content":"found 3"}]}',X'61BF26BB0EB55B1A3A52536F932415CA');
INSERT INTO "kode_messages" VALUES('agt-0',9,1795877344746,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 4"},{"type":"tool_use","id":"c4","name":"search","input":{"q":4}}]}',X'5E15B0BE08695046863BCD9D111208EF');
INSERT INTO "kode_messages" VALUES('agt-0',10,1795877344746,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c4","content":"found 4"}]}',X'F1A901732EB463993C6FEEEE2B93916E');
INSERT INTO "kode_messages" VALUES('agt-0',11,1795877344746,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 5"},{"type":"tool_use","id":"c5","name":"search","input":{"q":5}}]}',X'A182D26D9E47D3B35522DFE59CE4EE7F');
INSERT INTO "kode_messages" VALUES('agt-0',12,1795877344746,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c5","content":"found 5"}]}',X'41F1C23163FFBB812D1C3F1C4801FEB1');
INSERT INTO "kode_messages" VALUES('agt-1',0,1795877344760,'user','
text
','{"role":"user","content":[{"type":"text","text":"Hello 1"}]}',X'459AE186873E04B1327FFD58C4BB03A3');
INSERT INTO "kode_messages" VALUES('agt-1',1,1795877344760,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 0"},{"type":"tool_use","id":"c0","name":"search","input":{"q":0}}]}',X'8DD3E7558496AFE4A321385027D323C9');
INSERT INTO "kode_messages" VALUES('agt-1',2,1795877344760,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c0","content":"found 0"}]}',X'3EEB9338A083208727762E0ACE3DF237');
INSERT INTO "kode_messages" VALUES('agt-1',3,1795877344760,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 1"},{"type":"tool_use","id":"c1","name":"search","input":{"q":1}}]}',X'FEB636CCD75D0CA2A0563DBDA62A3981');
INSERT INTO "kode_messages" VALUES('agt-1',4,1795877344760,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"found 1"}]}',X'075DEAC20B2D3F2114D140A0DAFA9FE9');
INSERT INTO "kode_messages" VALUES('agt-1',5,1795877344760,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 2"},{"type":"tool_use","id":"c2","name":"search","input":{"q":2}}]}',X'593F0E7E0F48744B2071FB95A8AC4B94');
INSERT INTO "kode_messages" VALUES('agt-1',6,1795877344760,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c2","content":"found 2"}]}',X'96BD4CD0CE96933429C7D6C1C616AAED');
INSERT INTO "kode_messages" VALUES('agt-1',7,1795877344760,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 3"},{"type":"tool_use","id":"c3","name":"search","input":{"q":3}}]}',X'3C3E5F0D13FE42CD8D56038E902413DF');
INSERT INTO "kode_messages" VALUES('agt-1',8,1795877344760,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c3","content":"found 3"}]}',X'61BF26BB0EB55B1A3A52536F932415CA');
INSERT INTO "kode_messages" VALUES('agt-1',9,1795877344760,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 4"},{"type":"tool_use","id":"c4","name":"search","input":{"q":4}}]}',X'5E15B0BE08695046863BCD9D111208EF');
INSERT INTO "kode_messages" VALUES('agt-1',10,1795877344760,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c4","content":"found 4"}]}',X'F1A901732EB463993C6FEEEE2B93916E');
INSERT INTO "kode_messages" VALUES('agt-1',11,1795877344760,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 5"},{"type":"tool_use","id":"c5","name":"search","input":{"q":5}}]}',X'A182D26D9E47D3B35522DFE59CE4EE7F');
INSERT INTO "kode_messages" VALUES('agt-1',12,1795877344760,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c5","content":"found 5"}]}',X'41F1C23163FFBB812D1C3F1C4801FEB1');
INSERT INTO "kode_messages" VALUES('agt-1',13,1795877344760,'user','
image
text
','{"role":"user","content":[{"type":"text","text":"Look"},{"type":"image","url":"https://example.org/a.png"}]}',X'BE4CFA7F4FB57773E08A87BDEF2E0654');
INSERT INTO "kode_messages" VALUES('agt-2',0,1795877344772,'system','
text
','{"role":"system","content":[{"type":"text","text":"You are agent 2."}]}',X'3733027220E9376ED6FFA09CBA4054EA');
INSERT INTO "kode_messages" VALUES('agt-2',1,1795877344772,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 0"},{"type":"tool_use","id":"c0","name":"search","input":{"q":0}}]}',X'8DD3E7558496AFE4A321385027D323C9');
INSERT INTO "kode_messages" VALUES('agt-2',2,1795877344772,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c0","content":"found 0"}]}',X'3EEB9338A083208727762E0ACE3DF237');
INSERT INTO "kode_messages" VALUES('agt-2',3,1795877344772,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 1"},{"type":"tool_use","id":"c1","name":"search","input":{"q":1}}]}',X'FEB636CCD75D0CA2A0563DBDA62A3981');
INSERT INTO "kode_messages" VALUES('agt-2',4,1795877344772,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"found 1"}]}',X'075DEAC20B2D3F2114D140A0DAFA9FE9');
INSERT INTO "kode_messages" VALUES('agt-2',5,1795877344772,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 2"},{"type":"tool_use","id":"c2","name":"search","input":{"q":2}}]}',X'593F0E7E0F48744B2071FB95A8AC4B94');
INSERT INTO "kode_messages" VALUES('agt-2',6,1795877344772,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c2","content":"found 2"}]}',X'96BD4CD0CE96933429C7D6C1C616AAED');
INSERT INTO "kode_messages" VALUES('agt-2',7,1795877344772,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 3"},{"type":"tool_use","id":"c3","name":"search","input":{"q":3}}]}',X'3C3E5F0D13FE42CD8D56038E902413DF');
INSERT INTO "kode_messages" VALUES('agt-2',8,1795877344772,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c3","content":"found 3"}]}',X'61BF26BB0EB55B1A3A52536F932415CA');
INSERT INTO "kode_messages" VALUES('agt-2',9,1795877344772,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 4"},{"type":"tool_use","id":"c4","name":"search","input":{"q":4}}]}',X'5E15B0BE08695046863BCD9D111208EF');
INSERT INTO "kode_messages" VALUES('agt-2',10,1795877344772,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c4","content":"found 4"}]}',X'F1A901732EB463993C6FEEEE2B93916E');
INSERT INTO "kode_messages" VALUES('agt-2',11,1795877344772,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 5"},{"type":"tool_use","id":"c5","name":"search","input":{"q":5}}]}',X'A182D26D9E47D3B35522DFE59CE4EE7F');
INSERT INTO "kode_messages" VALUES('agt-2',12,1795877344772,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c5","content":"found 5"}]}',X'41F1C23163FFBB812D1C3F1C4801FEB1');
INSERT INTO "kode_messages" VALUES('agt-3',0,1795877344776,'user','
text
','{"role":"user","content":[{"type":"text","text":"Hello 3"}]}',X'C1F5CA3E49BE8BD996C67C9E93E13CB9');
INSERT INTO "kode_messages" VALUES('agt-3',1,1795877344776,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 0"},{"type":"tool_use","id":"c0","name":"search","input":{"q":0}}]}',X'8DD3E7558496AFE4A321385027D323C9');
INSERT INTO "kode_messages" VALUES('agt-3',2,1795877344776,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c0","content":"found 0"}]}',X'3EEB9338A083208727762E0ACE3DF237');
INSERT INTO "kode_messages" VALUES('agt-3',3,1795877344776,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 1"},{"type":"tool_use","id":"c1","name":"search","input":{"q":1}}]}',X'FEB636CCD75D0CA2A0563DBDA62A3981');
INSERT INTO "kode_messages" VALUES('agt-3',4,1795877344776,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"found 1"}]}',X'075DEAC20B2D3F2114D140A0DAFA9FE9');
INSERT INTO "kode_messages" VALUES('agt-3',5,1795877344776,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 2"},{"type":"tool_use","id":"c2","name":"search","input":{"q":2}}]}',X'593F0E7E0F48744B2071FB95A8AC4B94');
INSERT INTO "kode_messages" VALUES('agt-3',6,1795877344776,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c2","content":"found 2"}]}',X'96BD4CD0CE96933429C7D6C1C616AAED');
INSERT INTO "kode_messages" VALUES('agt-3',7,1795877344776,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 3"},{"type":"tool_use","id":"c3","name":"search","input":{"q":3}}]}',X'3C3E5F0D13FE42CD8D56038E902413DF');
INSERT INTO "kode_messages" VALUES('agt-3',8,1795877344776,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c3","content":"found 3"}]}',X'61BF26BB0EB55B1A3A52536F932415CA');
INSERT INTO "kode_messages" VALUES('agt-3',9,1795877344776,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 4"},{"type":"tool_use","id":"c4","name":"search","input":{"q":4}}]}',X'5E15B0BE08695046863BCD9D111208EF');
INSERT INTO "kode_messages" VALUES('agt-3',10,1795877344776,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c4","content":"found 4"}]}',X'F1A901732EB463993C6FEEEE2B93916E');
INSERT INTO "kode_messages" VALUES('agt-3',11,1795877344776,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 5"},{"type":"tool_use","id":"c5","name":"search","input":{"q":5}}]}',X'A182D26D9E47D3B35522DFE59CE4EE7F');
INSERT INTO "kode_messages" VALUES('agt-3',12,1795877344776,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c5","content":"found 5"}]}',X'41F1C23163FFBB812D1C3F1C4801FEB1');
INSERT INTO "kode_messages" VALUES('agt-3',13,1795877344776,'assistant','
reasoning
text
','{"role":"assistant","content":[{"type":"reasoning","reasoning":"Hm \"\\\n"},{"type":"text","text":"Yes"}]}',X'14AAFD03F20266C095D1861584ED0C33');
INSERT INTO "kode_messages" VALUES('agt-4',0,1795877344788,'user','
text
','{"role":"user","content":[{"type":"text","text":"Hello 4"}]}',X'5BD3B63620FF03FF09A780B430C438A2');
INSERT INTO "kode_messages" VALUES('agt-4',1,1795877344788,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 0"},{"type":"tool_use","id":"c0","name":"search","input":{"q":0}}]}',X'8DD3E7558496AFE4A321385027D323C9');
INSERT INTO "kode_messages" VALUES('agt-4',2,1795877344788,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c0","content":"found 0"}]}',X'3EEB9338A083208727762E0ACE3DF237');
INSERT INTO "kode_messages" VALUES('agt-4',3,1795877344788,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 1"},{"type":"tool_use","id":"c1","name":"search","input":{"q":1}}]}',X'FEB636CCD75D0CA2A0563DBDA62A3981');
INSERT INTO "kode_messages" VALUES('agt-4',4,1795877344788,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"found 1"}]}',X'075DEAC20B2D3F2114D140A0DAFA9FE9');
INSERT INTO "kode_messages" VALUES('agt-4',5,1795877344788,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 2"},{"type":"tool_use","id":"c2","name":"search","input":{"q":2}}]}',X'593F0E7E0F48744B2071FB95A8AC4B94');
INSERT INTO "kode_messages" VALUES('agt-4',6,1795877344788,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c2","content":"found 2"}]}',X'96BD4CD0CE96933429C7D6C1C616AAED');
INSERT INTO "kode_messages" VALUES('agt-4',7,1795877344788,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 3"},{"type":"tool_use","id":"c3","name":"search","input":{"q":3}}]}',X'3C3E5F0D13FE42CD8D56038E902413DF');
INSERT INTO "kode_messages" VALUES('agt-4',8,1795877344788,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c3","content":"found 3"}]}',X'61BF26BB0EB55B1A3A52536F932415CA');
INSERT INTO "kode_messages" VALUES('agt-4',9,1795877344788,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 4"},{"type":"tool_use","id":"c4","name":"search","input":{"q":4}}]}',X'5E15B0BE08695046863BCD9D111208EF');
INSERT INTO "kode_messages" VALUES('agt-4',10,1795877344788,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c4","content":"found 4"}]}',X'F1A901732EB463993C6FEEEE2B93916E');
INSERT INTO "kode_messages" VALUES('agt-4',11,1795877344788,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 5"},{"type":"tool_use","id":"c5","name":"search","input":{"q":5}}]}',X'A182D26D9E47D3B35522DFE59CE4EE7F');
INSERT INTO "kode_messages" VALUES('agt-4',12,1795877344788,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c5","content":"found 5"}]}',X'41F1C23163FFBB812D1C3F1C4801FEB1');
INSERT INTO "kode_messages" VALUES('agt-5',0,1795877344796,'user','
text
','{"role":"user","content":[{"type":"text","text":"Hello 5"}]}',X'FA79AB200C90E98E9F17BA875842BBCF');
INSERT INTO "kode_messages" VALUES('agt-5',1,1795877344796,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 0"},{"type":"tool_use","id":"c0","name":"search","input":{"q":0}}]}',X'8DD3E7558496AFE4A321385027D323C9');
INSERT INTO "kode_messages" VALUES('agt-5',2,1795877344796,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c0","content":"found 0"}]}',X'3EEB9338A083208727762E0ACE3DF237');
INSERT INTO "kode_messages" VALUES('agt-5',3,1795877344796,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 1"},{"type":"tool_use","id":"c1","name":"search","input":{"q":1}}]}',X'FEB636CCD75D0CA2A0563DBDA62A3981');
INSERT INTO "kode_messages" VALUES('agt-5',4,1795877344796,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"found 1"}]}',X'075DEAC20B2D3F2114D140A0DAFA9FE9');
INSERT INTO "kode_messages" VALUES('agt-5',5,1795877344796,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 2"},{"type":"tool_use","id":"c2","name":"search","input":{"q":2}}]}',X'593F0E7E0F48744B2071FB95A8AC4B94');
INSERT INTO "kode_messages" VALUES('agt-5',6,1795877344796,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c2","content":"found 2"}]}',X'96BD4CD0CE96933429C7D6C1C616AAED');
INSERT INTO "kode_messages" VALUES('agt-5',7,1795877344796,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 3"},{"type":"tool_use","id":"c3","name":"search","input":{"q":3}}]}',X'3C3E5F0D13FE42CD8D56038E902413DF');
INSERT INTO "kode_messages" VALUES('agt-5',8,1795877344796,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c3","content":"found 3"}]}',X'61BF26BB0EB55B1A3A52536F932415CA');
INSERT INTO "kode_messages" VALUES('agt-5',9,1795877344796,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 4"},{"type":"tool_use","id":"c4","name":"search","input":{"q":4}}]}',X'5E15B0BE08695046863BCD9D111208EF');
INSERT INTO "kode_messages" VALUES('agt-5',10,1795877344796,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c4","content":"found 4"}]}',X'F1A901732EB463993C6FEEEE2B93916E');
INSERT INTO "kode_messages" VALUES('agt-5',11,1795877344796,'assistant','
text
tool_use
','{"role":"assistant","content":[{"type":"text","text":"Turn 5"},{"type":"tool_use","id":"c5","name":"search","input":{"q":5}}]}',X'A182D26D9E47D3B35522DFE59CE4EE7F');
INSERT INTO "kode_messages" VALUES('agt-5',12,1795877344796,'user','
tool_result
','{"role":"user","content":[{"type":"tool_result","tool_use_id":"c5","content":"found 5"}]}',X'41F1C23163FFBB812D1C3F1C4801FEB1');
INSERT INTO "kode_messages" VALUES('no-info',0,1795877344844,'user','
text
','{"role":"user","content":[{"type":"text","text":"alone"}]}',X'343EAE9EBB581ACFD6CC74C7BA4FBB7E');
CREATE TABLE kode_meta (key TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "kode_meta" VALUES('last_token',1);
INSERT INTO "kode_meta" VALUES('schema_version',1);
CREATE TABLE kode_metadata (
            agent_id TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (agent_id, key)
        ) WITHOUT ROWID;
INSERT INTO "kode_metadata" VALUES('agt-0','n','0');
INSERT INTO "kode_metadata" VALUES('agt-1','n','1');
INSERT INTO "kode_metadata" VALUES('agt-2','n','2');
INSERT INTO "kode_metadata" VALUES('agt-3','n','3');
INSERT INTO "kode_metadata" VALUES('agt-4','n','4');
INSERT INTO "kode_metadata" VALUES('agt-5','n','5');
INSERT INTO "kode_metadata" VALUES('agt-0','plan','"free"');
INSERT INTO "kode_metadata" VALUES('agt-2','plan','"free"');
INSERT INTO "kode_metadata" VALUES('agt-4','plan','"free"');
INSERT INTO "kode_metadata" VALUES('agt-1','plan','"gold"');
INSERT INTO "kode_metadata" VALUES('agt-3','plan','"gold"');
INSERT INTO "kode_metadata" VALUES('agt-5','plan','"gold"');
INSERT INTO "kode_metadata" VALUES('agt-0','userId','"u-0"');
INSERT INTO "kode_metadata" VALUES('agt-3','userId','"u-0"');
INSERT INTO "kode_metadata" VALUES('agt-1','userId','"u-1"');
INSERT INTO "kode_metadata" VALUES('agt-4','userId','"u-1"');
INSERT INTO "kode_metadata" VALUES('agt-2','userId','"u-2"');
INSERT INTO "kode_metadata" VALUES('agt-5','userId','"u-2"');
CREATE TABLE kode_tool_calls (
            agent_id TEXT NOT NULL,
            position INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            call_id TEXT NOT NULL,
            tool_name TEXT NOT NULL,
            state TEXT NOT NULL,
            is_error INTEGER NOT NULL,
            has_approval INTEGER NOT NULL,
            body TEXT NOT NULL,
            digest BLOB NOT NULL
        );
INSERT INTO "kode_tool_calls" VALUES('agt-0',0,1700000000000,'c0','search','COMPLETED',0,0,'{"id":"c0","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000000,"updatedAt":1700000000500,"auditTrail":[]}',X'EF1FE320F1856ED6A63F8C796B0702E0');
INSERT INTO "kode_tool_calls" VALUES('agt-0',1,1700000000001,'c1','bash','FAILED',1,0,'{"id":"c1","name":"bash","state":"FAILED","approval":{"required":false},"isError":true,"createdAt":1700000000001,"updatedAt":1700000000501,"auditTrail":[]}',X'FC09310F9F09AEB6E1CABE43F665F282');
INSERT INTO "kode_tool_calls" VALUES('agt-0',2,1700000000002,'c2','search','PENDING',0,0,'{"id":"c2","name":"search","state":"PENDING","approval":{"required":false},"isError":false,"createdAt":1700000000002,"updatedAt":1700000000502,"auditTrail":[]}',X'DEB5C125F154290ABBDB195940805E0F');
INSERT INTO "kode_tool_calls" VALUES('agt-0',3,1700000000003,'c3','bash','COMPLETED',0,0,'{"id":"c3","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000003,"updatedAt":1700000000503,"auditTrail":[]}',X'28A99F707082BB40AC377B8B862D77AD');
INSERT INTO "kode_tool_calls" VALUES('agt-0',4,1700000000004,'c4','search','FAILED',1,0,'{"id":"c4","name":"search","state":"FAILED","approval":{"required":false},"isError":true,"createdAt":1700000000004,"updatedAt":1700000000504,"auditTrail":[]}',X'6C8ED293720F832344A0CE722A6DF1F9');
INSERT INTO "kode_tool_calls" VALUES('agt-0',5,1700000000005,'c5','bash','PENDING',0,0,'{"id":"c5","name":"bash","state":"PENDING","approval":{"required":false},"isError":false,"createdAt":1700000000005,"updatedAt":1700000000505,"auditTrail":[]}',X'3E507F51CA7D1EB11247590B44810BB1');
INSERT INTO "kode_tool_calls" VALUES('agt-1',0,1700000000000,'c0','search','COMPLETED',0,0,'{"id":"c0","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000000,"updatedAt":1700000000500,"auditTrail":[]}',X'EF1FE320F1856ED6A63F8C796B0702E0');
INSERT INTO "kode_tool_calls" VALUES('agt-1',1,1700000000001,'c1','bash','FAILED',1,0,'{"id":"c1","name":"bash","state":"FAILED","approval":{"required":false},"isError":true,"createdAt":1700000000001,"updatedAt":1700000000501,"auditTrail":[]}',X'FC09310F9F09AEB6E1CABE43F665F282');
INSERT INTO "kode_tool_calls" VALUES('agt-1',2,1700000000002,'c2','search','PENDING',0,0,'{"id":"c2","name":"search","state":"PENDING","approval":{"required":false},"isError":false,"createdAt":1700000000002,"updatedAt":1700000000502,"auditTrail":[]}',X'DEB5C125F154290ABBDB195940805E0F');
INSERT INTO "kode_tool_calls" VALUES('agt-1',3,1700000000003,'c3','bash','COMPLETED',0,0,'{"id":"c3","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000003,"updatedAt":1700000000503,"auditTrail":[]}',X'28A99F707082BB40AC377B8B862D77AD');
INSERT INTO "kode_tool_calls" VALUES('agt-1',4,1700000000004,'c4','search','FAILED',1,0,'{"id":"c4","name":"search","state":"FAILED","approval":{"required":false},"isError":true,"createdAt":1700000000004,"updatedAt":1700000000504,"auditTrail":[]}',X'6C8ED293720F832344A0CE722A6DF1F9');
INSERT INTO "kode_tool_calls" VALUES('agt-1',5,1700000000005,'c5','bash','PENDING',0,0,'{"id":"c5","name":"bash","state":"PENDING","approval":{"required":false},"isError":false,"createdAt":1700000000005,"updatedAt":1700000000505,"auditTrail":[]}',X'3E507F51CA7D1EB11247590B44810BB1');
INSERT INTO "kode_tool_calls" VALUES('agt-2',0,1700000000000,'c0','search','COMPLETED',0,0,'{"id":"c0","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000000,"updatedAt":1700000000500,"auditTrail":[]}',X'EF1FE320F1856ED6A63F8C796B0702E0');
INSERT INTO "kode_tool_calls" VALUES('agt-2',1,1700000000001,'c1','bash','COMPLETED',0,0,'{"id":"c1","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000001,"updatedAt":1700000000501,"auditTrail":[]}',X'1C6DC365985A753EF72CE4E7EED4D030');
INSERT INTO "kode_tool_calls" VALUES('agt-2',2,1700000000002,'c2','search','COMPLETED',0,0,'{"id":"c2","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000002,"updatedAt":1700000000502,"auditTrail":[]}',X'471D0059FE062EE0F77B7FE8905831AD');
INSERT INTO "kode_tool_calls" VALUES('agt-2',3,1700000000003,'c3','bash','COMPLETED',0,0,'{"id":"c3","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000003,"updatedAt":1700000000503,"auditTrail":[]}',X'28A99F707082BB40AC377B8B862D77AD');
INSERT INTO "kode_tool_calls" VALUES('agt-2',4,1700000000004,'c4','search','COMPLETED',0,0,'{"id":"c4","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000004,"updatedAt":1700000000504,"auditTrail":[]}',X'35F14C12D63A9C42BAB01794C02174F7');
INSERT INTO "kode_tool_calls" VALUES('agt-2',5,1700000000005,'c5','bash','COMPLETED',0,0,'{"id":"c5","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000005,"updatedAt":1700000000505,"auditTrail":[]}',X'EA1EC77812ADB8969BE7999D42C82EA1');
INSERT INTO "kode_tool_calls" VALUES('agt-3',0,1700000000000,'c0','search','COMPLETED',0,0,'{"id":"c0","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000000,"updatedAt":1700000000500,"auditTrail":[]}',X'EF1FE320F1856ED6A63F8C796B0702E0');
INSERT INTO "kode_tool_calls" VALUES('agt-3',1,1700000000001,'c1','bash','COMPLETED',0,0,'{"id":"c1","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000001,"updatedAt":1700000000501,"auditTrail":[]}',X'1C6DC365985A753EF72CE4E7EED4D030');
INSERT INTO "kode_tool_calls" VALUES('agt-3',2,1700000000002,'c2','search','COMPLETED',0,0,'{"id":"c2","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000002,"updatedAt":1700000000502,"auditTrail":[]}',X'471D0059FE062EE0F77B7FE8905831AD');
INSERT INTO "kode_tool_calls" VALUES('agt-3',3,1700000000003,'c3','bash','COMPLETED',0,0,'{"id":"c3","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000003,"updatedAt":1700000000503,"auditTrail":[]}',X'28A99F707082BB40AC377B8B862D77AD');
INSERT INTO "kode_tool_calls" VALUES('agt-3',4,1700000000004,'c4','search','COMPLETED',0,0,'{"id":"c4","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000004,"updatedAt":1700000000504,"auditTrail":[]}',X'35F14C12D63A9C42BAB01794C02174F7');
INSERT INTO "kode_tool_calls" VALUES('agt-3',5,1700000000005,'c5','bash','COMPLETED',0,0,'{"id":"c5","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000005,"updatedAt":1700000000505,"auditTrail":[]}',X'EA1EC77812ADB8969BE7999D42C82EA1');
INSERT INTO "kode_tool_calls" VALUES('agt-4',0,1700000000000,'c0','search','COMPLETED',0,1,'{"id":"c0","name":"search","state":"COMPLETED","approval":{"required":true},"isError":false,"createdAt":1700000000000,"updatedAt":1700000000500,"auditTrail":[]}',X'6491DBFE2F049D5CCBCF96C32F2338E9');
INSERT INTO "kode_tool_calls" VALUES('agt-4',1,1700000000001,'c1','bash','COMPLETED',0,0,'{"id":"c1","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000001,"updatedAt":1700000000501,"auditTrail":[]}',X'1C6DC365985A753EF72CE4E7EED4D030');
INSERT INTO "kode_tool_calls" VALUES('agt-4',2,1700000000002,'c2','search','COMPLETED',0,0,'{"id":"c2","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000002,"updatedAt":1700000000502,"auditTrail":[]}',X'471D0059FE062EE0F77B7FE8905831AD');
INSERT INTO "kode_tool_calls" VALUES('agt-4',3,1700000000003,'c3','bash','COMPLETED',0,0,'{"id":"c3","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000003,"updatedAt":1700000000503,"auditTrail":[]}',X'28A99F707082BB40AC377B8B862D77AD');
INSERT INTO "kode_tool_calls" VALUES('agt-4',4,1700000000004,'c4','search','COMPLETED',0,0,'{"id":"c4","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000004,"updatedAt":1700000000504,"auditTrail":[]}',X'35F14C12D63A9C42BAB01794C02174F7');
INSERT INTO "kode_tool_calls" VALUES('agt-4',5,1700000000005,'c5','bash','COMPLETED',0,0,'{"id":"c5","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000005,"updatedAt":1700000000505,"auditTrail":[]}',X'EA1EC77812ADB8969BE7999D42C82EA1');
INSERT INTO "kode_tool_calls" VALUES('agt-5',0,1700000000000,'c0','search','COMPLETED',0,0,'{"id":"c0","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000000,"updatedAt":1700000000500,"auditTrail":[]}',X'EF1FE320F1856ED6A63F8C796B0702E0');
INSERT INTO "kode_tool_calls" VALUES('agt-5',1,1700000000001,'c1','bash','COMPLETED',0,0,'{"id":"c1","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000001,"updatedAt":1700000000501,"auditTrail":[]}',X'1C6DC365985A753EF72CE4E7EED4D030');
INSERT INTO "kode_tool_calls" VALUES('agt-5',2,1700000000002,'c2','search','COMPLETED',0,0,'{"id":"c2","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000002,"updatedAt":1700000000502,"auditTrail":[]}',X'471D0059FE062EE0F77B7FE8905831AD');
INSERT INTO "kode_tool_calls" VALUES('agt-5',3,1700000000003,'c3','bash','COMPLETED',0,0,'{"id":"c3","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000003,"updatedAt":1700000000503,"auditTrail":[]}',X'28A99F707082BB40AC377B8B862D77AD');
INSERT INTO "kode_tool_calls" VALUES('agt-5',4,1700000000004,'c4','search','COMPLETED',0,0,'{"id":"c4","name":"search","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000004,"updatedAt":1700000000504,"auditTrail":[]}',X'35F14C12D63A9C42BAB01794C02174F7');
INSERT INTO "kode_tool_calls" VALUES('agt-5',5,1700000000005,'c5','bash','COMPLETED',0,0,'{"id":"c5","name":"bash","state":"COMPLETED","approval":{"required":false},"isError":false,"createdAt":1700000000005,"updatedAt":1700000000505,"auditTrail":[]}',X'EA1EC77812ADB8969BE7999D42C82EA1');
CREATE INDEX kode_agents_created ON kode_agents (created_at, agent_id) WHERE created_at IS NOT NULL;
CREATE INDEX kode_agents_updated ON kode_agents (updated_at, agent_id) WHERE created_at IS NOT NULL;
CREATE INDEX kode_agents_template ON kode_agents (template_id, created_at, agent_id)
            WHERE created_at IS NOT NULL;
CREATE INDEX kode_metadata_value ON kode_metadata (key, value, agent_id);
CREATE UNIQUE INDEX kode_messages_position ON kode_messages (agent_id, position);
CREATE INDEX kode_messages_agent_created ON kode_messages (agent_id, created_at, position);
CREATE INDEX kode_messages_created ON kode_messages (created_at, agent_id, position);
CREATE UNIQUE INDEX kode_tool_calls_position ON kode_tool_calls (agent_id, position);
CREATE INDEX kode_tool_calls_agent_created ON kode_tool_calls (agent_id, created_at, position);
CREATE INDEX kode_tool_calls_created ON kode_tool_calls (created_at, agent_id, position);
CREATE INDEX kode_tool_calls_name ON kode_tool_calls (tool_name, created_at, agent_id, position);
CREATE INDEX kode_tool_calls_errors ON kode_tool_calls (created_at, agent_id, position) WHERE is_error;
CREATE INDEX kode_tool_calls_stats ON kode_tool_calls (agent_id, tool_name, state);
CREATE INDEX kode_tool_calls_call ON kode_tool_calls (agent_id, call_id, position);
CREATE UNIQUE INDEX kode_docs_key ON kode_docs (agent_id, kind, key);
CREATE UNIQUE INDEX kode_events_seq ON kode_events (agent_id, seq, digest);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('kode_events',74);
COMMIT;
