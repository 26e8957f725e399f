import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { run } from './child.mjs'
import {
  choosePackages,
  cudaFolder,
  cudaRecord,
  cudaRelease,
  findSystem,
  isInstalled,
  requireCuda,
  toolkitPackages,
} from './cuda-toolchain.mjs'
import { SetupError } from './setup-error.mjs'
import { findProgram } from './toolchain.mjs'
import { exclusively, say } from './turn.mjs'

/** Installs what the machine lacks for building GPU code. Resolves to the exit code. */
export function installCuda(root) {
  return exclusively(root, async () => {
    const system = findSystem()
    const missing = choosePackages(system)
    for (const { place, nvcc, release } of system.toolkits) {
      if (release === undefined) say(`${place} leads to ${nvcc}, which does not run`)
      else if (release !== cudaRelease)
        say(`${place} leads to CUDA ${release}, but nibblet is built with ${cudaRelease}`)
    }
    if (!isInstalled(root, missing)) await install(root, missing)
    const { nvcc, cmake } = requireCuda(root, system)
    say(
      `CUDA ${cudaRelease} compiler: ${nvcc}\nCMake: ${cmake}\nNow \`npm run build:cuda\` builds the addon with GPU code.`,
    )
  })
}

/** The record is written last: without it the next run begins anew. */
async function install(root, packages) {
  if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch)) {
    throw new SetupError(
      `There are no CUDA packages for ${process.platform}-${process.arch}: install the CUDA ${cudaRelease} toolkit and CMake 4.1 or newer, put nvcc and cmake on PATH, then run the same command again.`,
    )
  }
  const python = findProgram('python3')
  if (python === undefined) {
    throw new SetupError(
      `The toolchain comes from the Python package registry, but there is no python3 on PATH: install it (on Debian and Ubuntu \`apt-get install python3 python3-venv\`), then run the same command again.`,
    )
  }
  const folder = join(root, cudaFolder)
  const log = join(root, 'build/setup-cuda.log')
  const pins = Object.entries(packages).map(([name, version]) => `${name}==${version}`)
  say(`installing into ${folder}: ${pins.join(' ')}`)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(dirname(log), { recursive: true })
  writeFileSync(log, '')

  const { code: noVenv } = await run(python, ['-m', 'venv', folder], { cwd: root, log })
  if (noVenv !== 0) {
    throw new SetupError(
      `${python} could not make a virtual environment (on Debian and Ubuntu \`apt-get install python3-venv\` helps). What it said is in ${log}:\n${lastLines(log)}`,
    )
  }
  const options = ['--disable-pip-version-check', '--no-input', '--no-deps', '--only-binary', ':all:']
  const { code } = await run(join(folder, 'bin/python'), ['-m', 'pip', 'install', ...options, ...pins], {
    cwd: root,
    log,
  })
  if (code !== 0) {
    throw new SetupError(
      `pip did not install the CUDA toolchain: is the Python package registry reachable? What it said is in ${log}:\n${lastLines(log)}`,
    )
  }
  if (Object.keys(toolkitPackages).some((name) => name in packages)) linkToolkit(folder)
  writeFileSync(join(root, cudaRecord), JSON.stringify(packages))
  if (!isInstalled(root, packages)) {
    throw new SetupError(`pip installed ${pins.join(' ')}, but ${folder} lacks bin/cmake or toolkit/bin/nvcc.`)
  }
}

/** `toolkit` leads to the one folder that all the packages unpack to; nvcc and CMake look for `lib64` there. */
function linkToolkit(folder) {
  const python = readdirSync(join(folder, 'lib')).find((name) => name.startsWith('python3'))
  const packages = `lib/${python}/site-packages/nvidia/cu13`
  symlinkSync(packages, join(folder, 'toolkit'))
  if (!existsSync(join(folder, packages, 'lib64'))) symlinkSync('lib', join(folder, packages, 'lib64'))
}

function lastLines(log) {
  return readFileSync(log, 'utf8').trimEnd().split('\n').slice(-5).join('\n')
}
