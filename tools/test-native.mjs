// Builds the plain test program of the kernels and the runtime with CMake, without Node in it, and runs it with the
// arguments given. NIBBLET_SANITIZE=thread|address|undefined builds it with that sanitizer, NIBBLET_CUDA=1 with the GPU
// code (NIBBLET_CUDA_ARCHS narrows its targets).
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { cudaVariables } from './setup/cmake.mjs'
import { chooseCuda } from './setup/cuda-archs.mjs'
import { requireCuda } from './setup/cuda-toolchain.mjs'
import { SetupError } from './setup/setup-error.mjs'

const root = fileURLToPath(new URL('../', import.meta.url))
const sanitizer = process.env.NIBBLET_SANITIZE ?? ''
const cuda = findCuda()
const folder = `build/test${cuda === undefined ? '' : '-cuda'}${sanitizer === '' ? '' : `-${sanitizer}`}`
const cmake = cuda?.cmake ?? 'cmake'
const variables = {
  NIBBLET_SANITIZE: sanitizer,
  NIBBLET_WERROR: process.env.NIBBLET_WERROR ? 'ON' : 'OFF',
  ...cudaVariables(cuda),
}

run(cmake, ['-S', '.', '-B', folder, ...Object.entries(variables).map(([name, value]) => `-D${name}=${value}`)])
run(cmake, ['--build', folder, '--target', 'nibblet-test', '--parallel', String(availableParallelism())])
run(`${folder}/nibblet-test`, process.argv.slice(2))

function findCuda() {
  try {
    const chosen = chooseCuda(process.env)
    return chosen === undefined ? undefined : { ...chosen, ...requireCuda(root) }
  } catch (error) {
    if (!(error instanceof SetupError)) throw error
    console.error(error.message)
    process.exit(1)
  }
}

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (error !== undefined) throw error
  if (status !== 0) process.exit(status ?? 1)
}
