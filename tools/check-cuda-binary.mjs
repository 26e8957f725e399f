// Fails unless the addon (build/Release/nibblet.node, or the file named) holds, for every .cu file of sources.json,
// machine code for each target of NIBBLET_CUDA_ARCHS (by default all that are built) and PTX for the last alone.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArchs } from './setup/cuda-archs.mjs'
import { findFaults } from './setup/cuda-binary.mjs'
import { requireCuda } from './setup/cuda-toolchain.mjs'
import { SetupError } from './setup/setup-error.mjs'
import { addonPath } from './setup/stale.mjs'

const root = fileURLToPath(new URL('../', import.meta.url))
try {
  const binary = resolve(process.argv[2] ?? join(root, addonPath))
  const archs = parseArchs(process.env.NIBBLET_CUDA_ARCHS)
  const files = JSON.parse(readFileSync(join(root, 'sources.json'), 'utf8'))['cuda-kernels']
  const faults = findFaults(list(binary), files, archs)
  if (faults.length > 0) throw new SetupError(`${binary}:\n${faults.map((fault) => `  ${fault}`).join('\n')}`)
  console.log(`machine code for ${archs.join(', ')} and PTX for ${archs.at(-1)} of all ${files.length} CUDA sources`)
} catch (error) {
  if (!(error instanceof SetupError)) throw error
  console.error(error.message)
  process.exitCode = 1
}

function list(binary) {
  if (!existsSync(binary)) throw new SetupError(`${binary} does not exist: run \`npm run build:cuda\`.`)
  const cuobjdump = join(requireCuda(root).bin, 'cuobjdump')
  const { status, stdout, stderr, error } = spawnSync(cuobjdump, [binary], {
    encoding: 'utf8',
    maxBuffer: 256 * 1024 * 1024,
  })
  if (error !== undefined) throw new SetupError(`${cuobjdump} did not run: ${error.message}`)
  // It has no success to report of a binary without GPU code.
  if (status !== 0 && !/does not contain device code/.test(stderr)) {
    throw new SetupError(`${cuobjdump} ${binary} failed:\n${stderr}`)
  }
  return stdout
}
