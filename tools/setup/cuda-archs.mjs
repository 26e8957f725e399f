import { SetupError } from './setup-error.mjs'

/** The release of nvcc that set-up installs; any 13.0 that the machine has is taken instead. */
export const cudaCompiler = '13.0.88'

/** The GPU targets of a build that names none: A100, L4 and RTX 40, H100, B200 and its family, RTX 50 and its family. */
export const defaultArchs = ['80', '89', '90a', '100f', '120f']

/** What the CUDA 13.0 compiler knows of compute capability 8.0 and newer. */
const knownArchs = [
  ['80', '86', '87', '88', '89', '90', '90a', '100', '100a', '100f', '103', '103a', '103f'],
  ['110', '110a', '110f', '120', '120a', '120f', '121', '121a', '121f'],
].flat()

/**
 * The targets in NIBBLET_CUDA_ARCHS, oldest first, each once; without it the default ones.
 *
 * @throws SetupError naming what is not a target
 */
export function parseArchs(text) {
  if (text === undefined || text === '') return defaultArchs
  const asked = text.split(/[\s,;]+/).filter((arch) => arch !== '')
  const wrong = asked.filter((arch) => !knownArchs.includes(arch))
  if (asked.length === 0 || wrong.length > 0) {
    throw new SetupError(
      `NIBBLET_CUDA_ARCHS holds ${wrong.length > 0 ? wrong.map((arch) => `"${arch}"`).join(', ') : 'no target'}: give GPU targets separated by commas, such as 90a or ${defaultArchs.join(',')}. Known are ${knownArchs.join(', ')}.`,
    )
  }
  return knownArchs.filter((arch) => asked.includes(arch))
}

/**
 * What the GPU code of the addon is built for and from, or undefined for an addon without any. NIBBLET_CUDA decides;
 * where it is unset the addon stays as it was last built (`previous`), so that `npm start` does not undo
 * `npm run build:cuda`.
 *
 * @throws SetupError for values of NIBBLET_CUDA and NIBBLET_CUDA_ARCHS that mean nothing
 */
export function chooseCuda({ NIBBLET_CUDA: wanted = '', NIBBLET_CUDA_ARCHS: archs }, previous) {
  if (!['', '0', '1'].includes(wanted)) {
    throw new SetupError(`NIBBLET_CUDA must be 1 (build the GPU code too) or 0 (do not), not "${wanted}".`)
  }
  if (wanted === '0' || (wanted === '' && previous === undefined)) return undefined
  const kept = wanted === '' && !archs ? previous.archs : undefined
  return { archs: kept ?? parseArchs(archs), compiler: cudaCompiler }
}
