import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './child.mjs'
import { takeFingerprint, writeStamp } from './fingerprint.mjs'
import { SetupError } from './setup-error.mjs'
import { scriptsInputs, scriptsOutput, scriptsStamp } from './stale.mjs'

/** Compiles lib into dist, only what changed since the last time, and removes what has no source any more. */
export async function compileScripts(root) {
  const fingerprint = takeFingerprint(root, ...scriptsInputs(root))
  const compiler = join(root, 'node_modules/typescript/bin/tsc')
  const { code } = await run(process.execPath, [compiler, '-p', join(root, 'tsconfig.json')], { cwd: root })
  if (code !== 0) throw new SetupError('TypeScript found the errors above: mend them, then run the same command again.')
  removeOrphans(join(root, 'lib'), join(root, 'dist'))
  writeStamp(root, scriptsStamp, scriptsOutput, fingerprint)
}

function removeOrphans(lib, dist) {
  const sources = new Set(readdirSync(lib, { recursive: true }).map((path) => path.replace(/\.ts$/, '')))
  for (const path of readdirSync(dist, { recursive: true })) {
    const source = path.replace(/(\.d\.ts|\.js)(\.map)?$/, '')
    if (source !== path && !sources.has(source)) rmSync(join(dist, path))
  }
}
