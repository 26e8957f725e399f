import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { run } from './child.mjs'
import { buildWithCMake } from './cmake.mjs'
import { requireCuda } from './cuda-toolchain.mjs'
import { readJson, takeFingerprint, writeStamp } from './fingerprint.mjs'
import { buildWithNodeGyp } from './node-gyp.mjs'
import { SetupError } from './setup-error.mjs'
import { addonInputs, addonPath, addonStamp, buildOptions } from './stale.mjs'
import { hasCMake } from './toolchain.mjs'

/**
 * Builds the addon aside, in a folder that keeps its objects for the next time, and renames the finished file last: what
 * lies at `addonPath` is always whole.
 */
export async function buildAddon(root, progress) {
  const fingerprint = takeFingerprint(root, ...addonInputs(root))
  const options = buildOptions(root)
  const cuda = options.cuda === undefined ? undefined : { ...options.cuda, ...requireCuda(root) }
  const builder = process.env.NIBBLET_BUILDER ?? (cuda !== undefined || hasCMake() ? 'cmake' : 'node-gyp')
  const build = { cmake: buildWithCMake, 'node-gyp': buildWithNodeGyp }[builder]
  if (build === undefined) throw new SetupError(`NIBBLET_BUILDER must be cmake or node-gyp, not "${builder}".`)
  if (cuda !== undefined && builder !== 'cmake') {
    throw new SetupError(
      'GPU code is built with CMake only: unset NIBBLET_BUILDER, or build without it (NIBBLET_CUDA=0).',
    )
  }

  const sources = listSources(root, cuda !== undefined)
  const name = cuda === undefined ? builder : `${builder}-cuda`
  const folder = join(root, 'build/unfinished', name)
  const log = join(root, `build/${name}.log`)
  // Begin anew with other options, which CMake would not see, and after a run that could not end in order: it may have
  // left half an object with a new date, which make would take as done.
  const marker = join(folder, '.running')
  const optionsFile = join(folder, '.options.json')
  if (existsSync(marker) || JSON.stringify(readJson(optionsFile)) !== JSON.stringify(options)) {
    rmSync(folder, { recursive: true, force: true })
  }
  mkdirSync(folder, { recursive: true })
  writeFileSync(optionsFile, JSON.stringify(options))
  writeFileSync(marker, '')
  writeFileSync(log, '')
  const jobs = Number(process.env.NIBBLET_JOBS) || availableParallelism()
  const step = async (command, args, { onText } = {}) => {
    const { code } = await run(command, args, { cwd: root, log, onText })
    if (code !== 0) throw new SetupError(describeFailure(log))
  }
  const built = await build({ root, folder, sources, jobs, cuda, step, progress }).catch((error) => {
    if (!error.killed) rmSync(marker)
    throw error
  })
  rmSync(marker)

  const target = join(root, addonPath)
  const aside = `${target}.${process.pid}`
  mkdirSync(dirname(target), { recursive: true })
  copyFileSync(built, aside)
  renameSync(aside, target)
  writeStamp(root, addonStamp, addonPath, { ...fingerprint, builder })
  progress.finish()
}

/** The files that sources.json names for the addon, each of which must exist. */
function listSources(root, cuda) {
  const list = readJson(join(root, 'sources.json'))
  if (list === undefined) throw new SetupError('sources.json is missing or is not JSON: restore it from git.')
  const gpu = cuda ? [...list['cuda-kernels'], ...list['cuda-runtime']] : []
  const sources = [...list.kernels, ...list.runtime, ...gpu, ...list.addon]
  const missing = sources.filter((file) => !existsSync(join(root, file)))
  if (missing.length > 0) throw new SetupError(`sources.json lists files that do not exist: ${missing.join(', ')}.`)
  return sources
}

/** The lines around the first errors of the log, and its name. */
function describeFailure(log) {
  const lines = readFileSync(log, 'utf8').trimEnd().split('\n')
  const first = lines.findIndex((line) => /\berror\b|CMake Error|\*\*\*/i.test(line))
  const excerpt = first < 0 ? lines.slice(-20) : lines.slice(first, first + 20)
  return `\n${excerpt.join('\n')}\n\nThe native code did not build. The compiler's whole output is in ${log}.`
}
