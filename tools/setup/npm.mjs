import { existsSync, realpathSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { SetupError } from './setup-error.mjs'

/** The script of npm: the npm that runs us, else the one beside this Node or on PATH. */
export function npmScript() {
  const running = process.env.npm_execpath
  if (running !== undefined && /npm-cli\.c?js$/.test(running) && existsSync(running)) return running
  const folder = dirname(process.execPath)
  const beside = [
    join(folder, '../lib/node_modules/npm/bin/npm-cli.js'),
    join(folder, 'node_modules/npm/bin/npm-cli.js'),
  ]
  const onPath = (process.env.PATH ?? '').split(delimiter).map((entry) => join(entry, 'npm'))
  for (const candidate of [...beside, ...onPath]) {
    if (existsSync(candidate)) {
      const script = realpathSync(candidate)
      if (script.endsWith('npm-cli.js')) return script
    }
  }
  throw new SetupError('npm was not found beside Node or on PATH: install it, or run this through `npm run setup`.')
}

/** The node-gyp that npm carries, or undefined when this npm has none. */
export function nodeGypScript() {
  const given = process.env.npm_config_node_gyp
  if (given !== undefined && existsSync(given)) return given
  const script = join(dirname(npmScript()), '../node_modules/node-gyp/bin/node-gyp.js')
  return existsSync(script) ? script : undefined
}
