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
INSERT INTO "kode_agents" VALUES('agt-0',1560927988879820,2,0,0,1795992931396,'0f9227ee6aba-1','t',1700000000000);
INSERT INTO "kode_agents" VALUES('agt-1',2421805910084500,2,0,0,1795992931407,'0f9227ee6aba-4','t',1700000000001);
INSERT INTO "kode_agents" VALUES('agt-2',4307349960990438,2,0,0,1795992931415,'0f9227ee6aba-7','t',1700000000002);
CREATE TABLE kode_docs (
        agent_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        time INTEGER NOT NULL,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    );
INSERT INTO "kode_docs" VALUES('agt-0','documents','c/k0',1795992931402,'{"value":{"n":0},"nonce":"3fa659a7530e6d15"}',X'9B587E403E4B4BF3E4363ECD325AF5AF');
INSERT INTO "kode_docs" VALUES('agt-0','documents','c/k1',1795992931402,'{"value":{"n":1},"nonce":"3274a3d1e1163a8d"}',X'AF3355729E9458ECF496E9AE81DD446F');
INSERT INTO "kode_docs" VALUES('agt-0','documents','c/k2',1795992931402,'{"value":{"n":2},"nonce":"a1a6ec4019a22731"}',X'F8CF96C467D282EE26D6701AC422BB16');
INSERT INTO "kode_docs" VALUES('agt-0','documents','c/k3',1795992931402,'{"value":{"n":3},"nonce":"a9d5af6ce21d92b5"}',X'696B5C8EEC78195B17C73C0534007235');
INSERT INTO "kode_docs" VALUES('agt-1','documents','c/k0',1795992931410,'{"value":{"n":0},"nonce":"29658ea5a7595143"}',X'3899729EE662045E2A2D2B029192D8AC');
INSERT INTO "kode_docs" VALUES('agt-1','documents','c/k1',1795992931410,'{"value":{"n":1},"nonce":"520e0b473573449e"}',X'9C6D697E02D69650FC3093728DDF86F9');
INSERT INTO "kode_docs" VALUES('agt-1','documents','c/k2',1795992931410,'{"value":{"n":2},"nonce":"5dfb8e0e84cfc7d4"}',X'9E473B3CD3A08CB0A2193700B523C2DA');
INSERT INTO "kode_docs" VALUES('agt-1','documents','c/k3',1795992931410,'{"value":{"n":3},"nonce":"50512a3160f90390"}',X'E3B457FE11D0839E36A46C6B02C1E5A0');
INSERT INTO "kode_docs" VALUES('agt-2','documents','c/k0',1795992931416,'{"value":{"n":0},"nonce":"72febd17210979be"}',X'22277DEBF6076F16AFE16A187C90AA67');
INSERT INTO "kode_docs" VALUES('agt-2','documents','c/k1',1795992931416,'{"value":{"n":1},"nonce":"2aabfdb52ea22958"}',X'A7BC2135DC9507AFEE9290D9994BDF47');
INSERT INTO "kode_docs" VALUES('agt-2','documents','c/k2',1795992931416,'{"value":{"n":2},"nonce":"c510509e8ee16ec3"}',X'0AB21446141AFCDDADD024BEA20408FC');
INSERT INTO "kode_docs" VALUES('agt-2','documents','c/k3',1795992931416,'{"value":{"n":3},"nonce":"c94684a1f999db0c"}',X'7A79A63B00F52B0C8838BF944B62C144');
INSERT INTO "kode_docs" VALUES('no-info','documents','c/k',1795992931418,'{"value":null,"nonce":"5b80cb855336fe36"}',X'A6745D903E45A73C02AE8F8AC1BDA242');
CREATE TABLE kode_events (
        "offset" INTEGER PRIMARY KEY AUTOINCREMENT,
        agent_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        channel TEXT NOT NULL,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    );
CREATE TABLE kode_infos (
        agent_id TEXT NOT NULL PRIMARY KEY,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    );
INSERT INTO "kode_infos" VALUES('agt-0','{"agentId":"agt-0","templateId":"t","createdAt":1700000000000,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"plan":"free"}}',X'ADFFCC36BDE61B12D68FBA40F85A23A5');
INSERT INTO "kode_infos" VALUES('agt-1','{"agentId":"agt-1","templateId":"t","createdAt":1700000000001,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"plan":"gold"}}',X'5B4DFC0F7EA80E32B2CD9B290A21827F');
INSERT INTO "kode_infos" VALUES('agt-2','{"agentId":"agt-2","templateId":"t","createdAt":1700000000002,"lineage":[],"configVersion":"","messageCount":0,"lastSfpIndex":-1,"metadata":{"plan":"gold"}}',X'E352202AB22B2B179ED88627C6D32019');
CREATE TABLE kode_leases (
        agent_id TEXT NOT NULL PRIMARY KEY,
        owner TEXT NOT NULL,
        token INTEGER NOT NULL,
        boot TEXT NOT NULL,
        expires INTEGER NOT NULL
    ) WITHOUT ROWID;
CREATE TABLE kode_message_types (
        type TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        agent_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (type, created_at, agent_id, position)
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
INSERT INTO "kode_messages" VALUES('agt-0',0,1795992931395,'user','
text
','{"role":"user","content":[{"type":"text","text":"hello 0"}]}',X'7EA8F0F628635CCF0C7C215332A959F0');
INSERT INTO "kode_messages" VALUES('agt-0',1,1795992931395,'assistant','
text
','{"role":"assistant","content":[{"type":"text","text":"hi"}]}',X'6D80B611F057FF06AED28BDE5F863C60');
INSERT INTO "kode_messages" VALUES('agt-1',0,1795992931407,'user','
text
','{"role":"user","content":[{"type":"text","text":"hello 1"}]}',X'79FD6AACFF8B66AAE8731DEE776A5B66');
INSERT INTO "kode_messages" VALUES('agt-1',1,1795992931407,'assistant','
text
','{"role":"assistant","content":[{"type":"text","text":"hi"}]}',X'6D80B611F057FF06AED28BDE5F863C60');
INSERT INTO "kode_messages" VALUES('agt-2',0,1795992931415,'user','
text
','{"role":"user","content":[{"type":"text","text":"hello 2"}]}',X'CD2B0A488F405D308F31916B947BEE78');
INSERT INTO "kode_messages" VALUES('agt-2',1,1795992931415,'assistant','
text
','{"role":"assistant","content":[{"type":"text","text":"hi"}]}',X'6D80B611F057FF06AED28BDE5F863C60');
CREATE TABLE kode_meta (key TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "kode_meta" VALUES('schema_version',2);
CREATE TABLE kode_metadata (
        agent_id TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL, created_at INTEGER,
        PRIMARY KEY (agent_id, key)
    ) WITHOUT ROWID;
INSERT INTO "kode_metadata" VALUES('agt-0','plan','"free"',1700000000000);
INSERT INTO "kode_metadata" VALUES('agt-1','plan','"gold"',1700000000001);
INSERT INTO "kode_metadata" VALUES('agt-2','plan','"gold"',1700000000002);
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
CREATE TABLE kode_totals (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        agents INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        tool_calls INTEGER NOT NULL
    );
INSERT INTO "kode_totals" VALUES(1,3,6,0);
CREATE INDEX kode_agents_created ON kode_agents (created_at, agent_id) WHERE created_at IS NOT NULL;
CREATE INDEX kode_agents_updated ON kode_agents (updated_at, agent_id) WHERE created_at IS NOT NULL;
CREATE INDEX kode_agents_template ON kode_agents (template_id, created_at, agent_id)
        WHERE created_at IS NOT NULL;
CREATE UNIQUE INDEX kode_messages_position ON kode_messages (agent_id, position);
CREATE INDEX kode_messages_agent_created ON kode_messages (agent_id, created_at, position);
CREATE INDEX kode_messages_created ON kode_messages (created_at, agent_id, position);
CREATE UNIQUE INDEX kode_tool_calls_position ON kode_tool_calls (agent_id, position);
CREATE INDEX kode_tool_calls_created ON kode_tool_calls (created_at, agent_id, position);
CREATE INDEX kode_tool_calls_name ON kode_tool_calls (tool_name, created_at, agent_id, position);
CREATE INDEX kode_tool_calls_errors ON kode_tool_calls (created_at, agent_id, position) WHERE is_error;
CREATE INDEX kode_tool_calls_call ON kode_tool_calls (agent_id, call_id, position);
CREATE UNIQUE INDEX kode_docs_key ON kode_docs (agent_id, kind, key);
CREATE UNIQUE INDEX kode_events_seq ON kode_events (agent_id, seq, digest);
CREATE TRIGGER kode_totals_insert AFTER INSERT ON kode_agents BEGIN
        UPDATE kode_totals SET agents = agents + (NEW.created_at IS NOT NULL), messages = messages + CASE WHEN typeof(NEW.message_count) = 'integer' AND NEW.message_count BETWEEN 0 AND 1099511627775 THEN NEW.message_count ELSE 0 END, tool_calls = tool_calls + CASE WHEN typeof(NEW.tool_call_count) = 'integer' AND NEW.tool_call_count BETWEEN 0 AND 1099511627775 THEN NEW.tool_call_count ELSE 0 END;
    END;
CREATE TRIGGER kode_totals_delete AFTER DELETE ON kode_agents BEGIN
        UPDATE kode_totals SET agents = agents - (OLD.created_at IS NOT NULL), messages = messages - CASE WHEN typeof(OLD.message_count) = 'integer' AND OLD.message_count BETWEEN 0 AND 1099511627775 THEN OLD.message_count ELSE 0 END, tool_calls = tool_calls - CASE WHEN typeof(OLD.tool_call_count) = 'integer' AND OLD.tool_call_count BETWEEN 0 AND 1099511627775 THEN OLD.tool_call_count ELSE 0 END;
    END;
CREATE TRIGGER kode_totals_update AFTER UPDATE OF created_at, message_count, tool_call_count ON kode_agents
        WHEN OLD.message_count IS NOT NEW.message_count OR OLD.tool_call_count IS NOT NEW.tool_call_count
            OR (OLD.created_at IS NULL) <> (NEW.created_at IS NULL)
    BEGIN
        UPDATE kode_totals SET
            agents = agents + (NEW.created_at IS NOT NULL) - (OLD.created_at IS NOT NULL),
            messages = messages + CASE WHEN typeof(NEW.message_count) = 'integer' AND NEW.message_count BETWEEN 0 AND 1099511627775 THEN NEW.message_count ELSE 0 END - CASE WHEN typeof(OLD.message_count) = 'integer' AND OLD.message_count BETWEEN 0 AND 1099511627775 THEN OLD.message_count ELSE 0 END,
            tool_calls = tool_calls + CASE WHEN typeof(NEW.tool_call_count) = 'integer' AND NEW.tool_call_count BETWEEN 0 AND 1099511627775 THEN NEW.tool_call_count ELSE 0 END - CASE WHEN typeof(OLD.tool_call_count) = 'integer' AND OLD.tool_call_count BETWEEN 0 AND 1099511627775 THEN OLD.tool_call_count ELSE 0 END;
    END;
CREATE INDEX kode_agents_count ON kode_agents (message_count, agent_id) WHERE created_at IS NOT NULL;
CREATE TRIGGER kode_metadata_insert AFTER INSERT ON kode_metadata BEGIN
        UPDATE kode_metadata SET created_at = (SELECT created_at FROM kode_agents WHERE agent_id = NEW.agent_id)
            WHERE agent_id = NEW.agent_id AND key = NEW.key;
    END;
CREATE TRIGGER kode_metadata_update AFTER UPDATE OF created_at ON kode_agents
        WHEN OLD.created_at IS NOT NEW.created_at
    BEGIN
        UPDATE kode_metadata SET created_at = NEW.created_at WHERE agent_id = NEW.agent_id;
    END;
CREATE INDEX kode_metadata_created ON kode_metadata (key, value, created_at, agent_id);
CREATE INDEX kode_messages_role ON kode_messages (role, created_at, agent_id, position)
            WHERE role <> 'user' AND role <> 'assistant';
CREATE TRIGGER kode_message_types_insert AFTER INSERT ON kode_messages WHEN typeof(NEW.content_types) = 'text' AND NEW.content_types <> '
text
' AND NEW.content_types <> '
tool_result
' AND NEW.content_types <> '
text
tool_use
' AND NEW.content_types <> '
tool_use
' AND NEW.content_types <> '
' BEGIN
        INSERT INTO kode_message_types (type, created_at, agent_id, position) SELECT DISTINCT j.value, NEW.created_at, NEW.agent_id, NEW.position FROM json_each(CASE WHEN typeof(NEW.content_types) = 'text' AND NEW.content_types <> '
text
' AND NEW.content_types <> '
tool_result
' AND NEW.content_types <> '
text
tool_use
' AND NEW.content_types <> '
tool_use
' AND NEW.content_types <> '
' THEN '[' || replace(replace(json_quote(substr(NEW.content_types, 2, length(NEW.content_types) - 2)), '\\', '\u005c'), '\n', '","') || ']' ELSE '[]' END) j WHERE j.value NOT IN ('text', 'tool_use', 'tool_result');
    END;
CREATE TRIGGER kode_message_types_delete AFTER DELETE ON kode_messages WHEN typeof(OLD.content_types) = 'text' AND OLD.content_types <> '
text
' AND OLD.content_types <> '
tool_result
' AND OLD.content_types <> '
text
tool_use
' AND OLD.content_types <> '
tool_use
' AND OLD.content_types <> '
' BEGIN
        DELETE FROM kode_message_types WHERE type IN (SELECT j.value FROM json_each(CASE WHEN typeof(OLD.content_types) = 'text' AND OLD.content_types <> '
text
' AND OLD.content_types <> '
tool_result
' AND OLD.content_types <> '
text
tool_use
' AND OLD.content_types <> '
tool_use
' AND OLD.content_types <> '
' THEN '[' || replace(replace(json_quote(substr(OLD.content_types, 2, length(OLD.content_types) - 2)), '\\', '\u005c'), '\n', '","') || ']' ELSE '[]' END) j) AND created_at = OLD.created_at AND agent_id = OLD.agent_id AND position = OLD.position;
    END;
CREATE TRIGGER kode_message_types_update AFTER UPDATE OF agent_id, position, created_at, content_types
        ON kode_messages WHEN (typeof(OLD.content_types) = 'text' AND OLD.content_types <> '
text
' AND OLD.content_types <> '
tool_result
' AND OLD.content_types <> '
text
tool_use
' AND OLD.content_types <> '
tool_use
' AND OLD.content_types <> '
') OR (typeof(NEW.content_types) = 'text' AND NEW.content_types <> '
text
' AND NEW.content_types <> '
tool_result
' AND NEW.content_types <> '
text
tool_use
' AND NEW.content_types <> '
tool_use
' AND NEW.content_types <> '
')
    BEGIN
        DELETE FROM kode_message_types WHERE type IN (SELECT j.value FROM json_each(CASE WHEN typeof(OLD.content_types) = 'text' AND OLD.content_types <> '
text
' AND OLD.content_types <> '
tool_result
' AND OLD.content_types <> '
text
tool_use
' AND OLD.content_types <> '
tool_use
' AND OLD.content_types <> '
' THEN '[' || replace(replace(json_quote(substr(OLD.content_types, 2, length(OLD.content_types) - 2)), '\\', '\u005c'), '\n', '","') || ']' ELSE '[]' END) j) AND created_at = OLD.created_at AND agent_id = OLD.agent_id AND position = OLD.position;
        INSERT INTO kode_message_types (type, created_at, agent_id, position) SELECT DISTINCT j.value, NEW.created_at, NEW.agent_id, NEW.position FROM json_each(CASE WHEN typeof(NEW.content_types) = 'text' AND NEW.content_types <> '
text
' AND NEW.content_types <> '
tool_result
' AND NEW.content_types <> '
text
tool_use
' AND NEW.content_types <> '
tool_use
' AND NEW.content_types <> '
' THEN '[' || replace(replace(json_quote(substr(NEW.content_types, 2, length(NEW.content_types) - 2)), '\\', '\u005c'), '\n', '","') || ']' ELSE '[]' END) j WHERE j.value NOT IN ('text', 'tool_use', 'tool_result');
    END;
CREATE INDEX kode_tool_calls_state ON kode_tool_calls (state, created_at, agent_id, position)
            WHERE state <> 'COMPLETED';
CREATE INDEX kode_tool_calls_approval ON kode_tool_calls (created_at, agent_id, position) WHERE has_approval;
CREATE INDEX kode_tool_calls_agent ON kode_tool_calls (agent_id, created_at, position, tool_name, state);
CREATE INDEX kode_events_agent ON kode_events (agent_id);
CREATE INDEX kode_events_channel ON kode_events (agent_id, channel) WHERE channel <> 'progress';
DELETE FROM "sqlite_sequence";
COMMIT;
