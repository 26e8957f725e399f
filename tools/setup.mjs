// Makes a checkout ready to run: packages, native code, JavaScript. Says nothing when all of it is fresh.
// Old Nodes must be able to parse this file, so that they get one sentence instead of a syntax error: the set-up itself
// is imported after the check, nothing is imported before it, and the syntax stays that of 2019.
const [major, minor] = process.versions.node.split('.').map(Number)

if ((major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22) {
  import('./setup/main.mjs').then((setup) => setup.main())
} else {
  process.stderr.write(
    'nibblet needs Node 20.19 or newer of the 20 line, or 22.12 or newer, but this is Node ' +
      process.versions.node +
      ': install a newer Node, then run the same command again.\n',
  )
  process.exitCode = 1
}
