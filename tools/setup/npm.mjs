import { existsSync, realpathSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { SetupError } from './setup-error.mjs'

/** The scripts of the npms at hand: first the one that runs us, then those beside this Node and on PATH. */
function npmScripts() {
  const folder = dirname(process.execPath)
  const candidates = [
    process.env.npm_execpath ?? '',
    join(folder, '../lib/node_modules/npm/bin/npm-cli.js'),
    join(folder, 'node_modules/npm/bin/npm-cli.js'),
    ...(process.env.PATH ?? '').split(delimiter).map((entry) => join(entry, 'npm')),
  ]
  // Under another package manager npm_execpath names that one, and on PATH may stand a wrapper.
  return candidates
    .flatMap((path) => (existsSync(path) ? [realpathSync(path)] : []))
    .filter((path) => /npm-cli\.c?js$/.test(path))
}

export function npmScript() {
  const [script] = npmScripts()
  if (script === undefined) {
    throw new SetupError('npm was not found beside Node or on PATH: install it, or run this through `npm run setup`.')
  }
  return script
}

/** The node-gyp that npm carries, or undefined when there is none. */
export function nodeGypScript() {
  const carried = npmScripts().map((script) => join(dirname(script), '../node_modules/node-gyp/bin/node-gyp.js'))
  return [process.env.npm_config_node_gyp ?? '', ...carried].find((path) => existsSync(path))
}
