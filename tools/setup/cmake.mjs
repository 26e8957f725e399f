import { createRequire } from 'node:module'
import { join } from 'node:path'
import { SetupError } from './setup-error.mjs'
import { requireCompiler } from './toolchain.mjs'

/** Builds through cmake-js, which takes the Node-API headers from a package and so needs no network. Returns the file. */
export async function buildWithCMake({ root, folder, jobs, step, progress }) {
  requireCompiler([['ninja', 'make']])
  const script = findCMakeJs(root)
  const common = ['--directory', root, '--out', folder]
  const werror = process.env.NIBBLET_WERROR ? 'ON' : 'OFF'
  await step(process.execPath, [script, 'configure', ...common, `--CDNIBBLET_WERROR=${werror}`])
  await step(process.execPath, [script, 'build', ...common, '--target', 'nibblet', '--parallel', String(jobs)], {
    onText: countSteps(progress),
  })
  return join(folder, 'Release/nibblet.node')
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
