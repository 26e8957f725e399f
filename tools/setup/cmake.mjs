import { createRequire } from 'node:module'
import { join } from 'node:path'
import { SetupError } from './setup-error.mjs'
import { findProgram, requireCompiler } from './toolchain.mjs'

/**
 * Builds through cmake-js, which takes the Node-API headers from a package and so needs no network; with `cuda` (targets
 * and programs) the GPU code too. Returns the file.
 */
export async function buildWithCMake({ root, folder, jobs, cuda, step, progress }) {
  requireCompiler([['ninja', 'make']])
  const script = findCMakeJs(root)
  const cmake = cuda === undefined ? [] : ['--cmake-path', cuda.cmake]
  const common = ['--directory', root, '--out', folder, ...cmake]
  const variables = { NIBBLET_WERROR: process.env.NIBBLET_WERROR ? 'ON' : 'OFF', ...cudaVariables(cuda) }
  const options = Object.entries(variables).map(([name, value]) => `--CD${name}=${value}`)
  await step(process.execPath, [script, 'configure', ...common, ...options])
  await step(process.execPath, [script, 'build', ...common, '--target', 'nibblet', '--parallel', String(jobs)], {
    onText: countSteps(progress),
  })
  return join(folder, 'Release/nibblet.node')
}

/** The variables of CMakeLists.txt for the GPU code. Five targets a file are worth a cache wherever there is one. */
export function cudaVariables(cuda) {
  if (cuda === undefined) return {}
  const launcher = process.env.CMAKE_CUDA_COMPILER_LAUNCHER ?? findProgram('ccache')
  return {
    NIBBLET_CUDA: 'ON',
    NIBBLET_CUDA_ARCHS: cuda.archs.join(','),
    CMAKE_CUDA_COMPILER: cuda.nvcc,
    ...(launcher ? { CMAKE_CUDA_COMPILER_LAUNCHER: launcher } : {}),
  }
}

function findCMakeJs(root) {
  const require = createRequire(join(root, 'package.json'))
  try {
    return join(require.resolve('cmake-js/package.json'), '../bin/cmake-js')
  } catch {
    const { devDependencies } = require('./package.json')
    const packages = ['cmake-js', 'node-addon-api', 'node-api-headers'].map(
      (name) => `${name}@${devDependencies[name]}`,
    )
    throw new SetupError(
      `Building from source needs packages that are not installed: run \`npm install --no-save ${packages.join(' ')}\`, then run the same command again.`,
    )
  }
}

/** Ninja writes [12/31], make [ 38%]. */
function countSteps(progress) {
  return (text) => {
    for (const [, done, total, percent] of text.matchAll(/^\[(?:(\d+)\/(\d+)| *(\d+)%)\]/gm)) {
      if (percent === undefined) progress.update(Number(done), Number(total))
      else progress.update(Number(percent), 100)
    }
  }
}
