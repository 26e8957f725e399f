import { copyFileSync, cpSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { nodeGypScript } from './npm.mjs'
import { SetupError } from './setup-error.mjs'
import { requireCompiler } from './toolchain.mjs'

/**
 * Builds without CMake, through the node-gyp that npm carries. node-gyp wants Node's own headers and would download
 * them; a folder with the Node-API headers and two small configuration files is enough for it. It always builds in the
 * folder of binding.gyp, so a folder of links to the sources stands aside for it. Returns the file.
 */
export async function buildWithNodeGyp({ root, folder, sources, jobs, step, progress }) {
  requireCompiler([['make'], ['python3', 'python']])
  const nodeGyp = nodeGypScript()
  if (nodeGyp === undefined) {
    throw new SetupError(
      'Neither CMake 3.25 nor the node-gyp of npm was found: install CMake, then run the same command again.',
    )
  }
  for (const name of ['kernels', 'native']) link(join(root, name), join(folder, name))
  for (const name of ['binding.gyp', 'sources.json', 'package.json']) copyFileSync(join(root, name), join(folder, name))
  const headers = writeHeaders(root, join(folder, 'headers'))
  const common = [nodeGyp, '--directory', folder, '--nodedir', headers]
  await step(process.execPath, [...common, 'configure'])
  let done = 0
  await step(process.execPath, [...common, 'build', '--jobs', String(jobs)], {
    onText: (text) => {
      const started = text.match(/^ +CXX\(target\)/gm)?.length ?? 0
      if (started === 0) return
      done += started
      progress.update(Math.min(done, sources.length), sources.length)
    },
  })
  return join(folder, 'build/Release/nibblet.node')
}

function link(target, path) {
  rmSync(path, { force: true })
  symlinkSync(target, path, 'junction')
}

function writeHeaders(root, folder) {
  const { include_dir: source } = createRequire(join(root, 'package.json'))('node-api-headers')
  const include = join(folder, 'include/node')
  mkdirSync(include, { recursive: true })
  cpSync(source, include, { recursive: true, preserveTimestamps: true })
  const flags = { Release: { cflags: ['-O3'] }, Debug: { cflags: ['-O0', '-g'] } }
  const common = { target_defaults: { default_configuration: 'Release', configurations: flags } }
  writeFileSync(join(include, 'config.gypi'), JSON.stringify({ target_defaults: {}, variables: {} }))
  writeFileSync(join(include, 'common.gypi'), JSON.stringify(common))
  return folder
}
