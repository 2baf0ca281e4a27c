"""The tables of a store, as SQL that SQLite and PostgreSQL both read, and how an older file is brought up to date.

Schema history (PRAGMA user_version in a file, costmodel.version in PostgreSQL):
  1  texts, kernels, problems, devices, methods (toolchain and timing), measurements
  2  spaces (a kernel text, problem and device), and the index of identities ordered by them: what is measured together
     lies together, so adding touches few pages however much is stored, and one index serves look-ups by variant, by
     kernel and by device. Nouns are found by the digest of what they hold, not by their whole text. No sitting numbers:
     the order of ids says as much. PostgreSQL stores begin here.
"""

from __future__ import annotations

from costmodel.records import UserError

VERSION = 2
NOUNS = ("kernels", "problems", "devices", "methods", "spaces")

TABLES = """
    CREATE TABLE kernels (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL REFERENCES texts, name TEXT NOT NULL,
        language TEXT NOT NULL, schema TEXT NOT NULL, origin TEXT NOT NULL);
    CREATE TABLE problems (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, op TEXT NOT NULL, sheet TEXT NOT NULL);
    CREATE TABLE devices (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, identity TEXT NOT NULL, name TEXT NOT NULL,
        sheet TEXT NOT NULL);
    CREATE TABLE methods (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, toolchain TEXT NOT NULL, timing TEXT NOT NULL);
    CREATE TABLE spaces (
        id INTEGER PRIMARY KEY, text TEXT NOT NULL REFERENCES texts, problem INTEGER NOT NULL REFERENCES problems,
        device INTEGER NOT NULL REFERENCES devices, UNIQUE (text, problem, device));
    CREATE TABLE measurements (
        id INTEGER PRIMARY KEY, space INTEGER NOT NULL REFERENCES spaces, identity TEXT NOT NULL, content TEXT NOT NULL,
        kernel INTEGER NOT NULL REFERENCES kernels, method INTEGER NOT NULL REFERENCES methods, config TEXT NOT NULL,
        status TEXT NOT NULL, samples_us TEXT NOT NULL, error TEXT NOT NULL, counters TEXT NOT NULL,
        collected_at TEXT NOT NULL, UNIQUE (space, identity, content));
"""

NEW = f"CREATE TABLE texts (identity TEXT PRIMARY KEY, source TEXT); {TABLES}"

# UPGRADES[n] makes version n + 1 out of a file of version n; `digest` is a function that the connection is given.
UPGRADES: dict[int, str] = {
    1: f"""
    ALTER TABLE kernels RENAME TO old_kernels;
    ALTER TABLE problems RENAME TO old_problems;
    ALTER TABLE devices RENAME TO old_devices;
    ALTER TABLE methods RENAME TO old_methods;
    ALTER TABLE measurements RENAME TO old_measurements;
    {TABLES}
    INSERT INTO kernels SELECT id, digest(identity, name, schema, origin), identity, name, language, schema, origin
        FROM old_kernels ORDER BY id;
    INSERT INTO problems SELECT id, digest(sheet), op, sheet FROM old_problems ORDER BY id;
    INSERT INTO devices SELECT id, digest(sheet), identity, name, sheet FROM old_devices ORDER BY id;
    INSERT INTO methods SELECT id, digest(toolchain, timing), toolchain, timing FROM old_methods ORDER BY id;
    INSERT INTO spaces (text, problem, device)
        SELECT DISTINCT k.text, m.problem, m.device FROM old_measurements m JOIN kernels k ON k.id = m.kernel;
    INSERT INTO measurements
        SELECT m.id, s.id, m.identity, m.content, m.kernel, m.method, m.config, m.status, m.samples_us, m.error,
               m.counters, m.collected_at
        FROM old_measurements m JOIN kernels k ON k.id = m.kernel
             JOIN spaces s ON s.text = k.text AND s.problem = m.problem AND s.device = m.device
        ORDER BY m.id;
    DROP TABLE old_measurements;
    DROP TABLE old_methods;
    DROP TABLE old_devices;
    DROP TABLE old_problems;
    DROP TABLE old_kernels;
    """
}


def expect_known(version: int, name: str) -> None:
    """UserError where a newer costmodel wrote the store `name`."""
    if version > VERSION:
        raise UserError(f"got {name} of schema {version}, expected at most {VERSION}; update costmodel to open it")


def statements(script: str) -> list[str]:
    return [statement for statement in script.split(";") if statement.strip()]
