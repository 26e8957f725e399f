import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { cudaCompiler } from './cuda-archs.mjs'
import { readJson } from './fingerprint.mjs'
import { SetupError } from './setup-error.mjs'
import { findProgram } from './toolchain.mjs'

/** The one CUDA release that builds the addon: a driver refuses PTX that a newer toolkit than its own made. */
export const cudaRelease = '13.0'

/** Where set-up installs a toolchain of its own, and the record of what it installed there. */
export const cudaFolder = '.cuda'
export const cudaRecord = '.cuda/installed.json'

/** What a toolkit is made of in the Python package registry. The two disassemblers read what every release writes. */
export const toolkitPackages = {
  'nvidia-cuda-nvcc': cudaCompiler,
  'nvidia-nvvm': cudaCompiler,
  'nvidia-cuda-crt': cudaCompiler,
  'nvidia-cuda-runtime': '13.0.96',
  'nvidia-cuda-cccl': '13.0.85',
  'nvidia-cuda-cuobjdump': '13.2.78',
  'nvidia-cuda-nvdisasm': '13.2.78',
}

/** CMake of Debian 12 (3.25) can neither configure CUDA 13 nor name family targets such as 100f. */
export const cmakePackages = { cmake: '4.1.2' }

/** `13.0` of what `nvcc --version` prints, or undefined. */
export function parseNvccRelease(text) {
  return /release (\d+\.\d+)/.exec(text)?.[1]
}

/** Whether `cmake --version` printed 4.1 or newer, the first to know family targets. */
export function isCMakeForCuda(text) {
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(text) ?? []
  return Number(major) > 4 || (Number(major) === 4 && Number(minor) >= 1)
}

/**
 * The toolkits and the CMake that the machine itself has: `toolkits` in order of preference, each with the place that
 * named it and its release (undefined where nvcc does not run).
 */
export function findSystem(environment = process.env) {
  const toolkits = []
  for (const name of ['CUDA_HOME', 'CUDA_PATH']) {
    if (environment[name]) toolkits.push(inspect(name, join(environment[name], 'bin/nvcc')))
  }
  const nvcc = findProgram('nvcc', environment.PATH)
  if (nvcc !== undefined) toolkits.push(inspect('PATH', nvcc))
  const cmake = findProgram('cmake', environment.PATH)
  return { toolkits, cmake: cmake !== undefined && isCMakeForCuda(versionOf(cmake)) ? cmake : undefined }
}

/** Which packages a machine lacks: none of the toolkit's where a toolkit fits, no CMake where one is new enough. */
export function choosePackages({ toolkits, cmake }) {
  return {
    ...(toolkits.some(({ release }) => release === cudaRelease) ? {} : toolkitPackages),
    ...(cmake === undefined ? cmakePackages : {}),
  }
}

/** Whether set-up has installed these packages below `root`. */
export function isInstalled(root, packages) {
  const installed = readJson(join(root, cudaRecord)) ?? {}
  const has = (folder) => existsSync(join(root, cudaFolder, folder))
  return Object.entries(packages).every(
    ([name, version]) => installed[name] === version && has(name === 'cmake' ? 'bin/cmake' : 'toolkit/bin/nvcc'),
  )
}

/**
 * The programs that build GPU code: the machine's own where they fit, else those that set-up installed.
 *
 * @throws SetupError where there are neither
 */
export function requireCuda(root, system = findSystem()) {
  const missing = choosePackages(system)
  if (!isInstalled(root, missing)) {
    throw new SetupError(
      `The CUDA ${cudaRelease} toolchain is not there: run \`npm run setup:cuda\`, which installs it in ${cudaFolder}, or build for the CPU alone with \`NIBBLET_CUDA=0 npm run setup\`.`,
    )
  }
  const own = system.toolkits.find(({ release }) => release === cudaRelease)
  const nvcc = own?.nvcc ?? join(root, cudaFolder, 'toolkit/bin/nvcc')
  return { nvcc, bin: dirname(nvcc), cmake: system.cmake ?? join(root, cudaFolder, 'bin/cmake') }
}

function inspect(place, nvcc) {
  return { place, nvcc, release: existsSync(nvcc) ? parseNvccRelease(versionOf(nvcc)) : undefined }
}

function versionOf(program) {
  return spawnSync(program, ['--version'], { encoding: 'utf8' }).stdout ?? ''
}
