-- All that tasks/rights.yml manages, in one database, as lines in a fixed order.
SELECT line FROM (
  SELECT concat_ws(' ', 'role', to_json(one)) AS line FROM (
    SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit,
      rolpassword, rolvaliduntil FROM pg_authid) AS one
  UNION ALL SELECT concat_ws(' ', 'member', to_json(one)) FROM pg_auth_members AS one
  UNION ALL SELECT concat_ws(' ', 'setting', setdatabase, setrole::regrole, to_json(setconfig)) FROM pg_db_role_setting
  UNION ALL SELECT concat_ws(' ', 'database', oid, datname, datdba::regrole, encoding, datcollate, datctype, to_json(datacl))
    FROM pg_database
  UNION ALL SELECT concat_ws(' ', 'schema', nspowner::regrole, to_json(nspacl)) FROM pg_namespace WHERE nspname = 'public'
  UNION ALL SELECT concat_ws(' ', 'extension', extname, extnamespace::regnamespace) FROM pg_extension
) AS found ORDER BY line COLLATE "C";
