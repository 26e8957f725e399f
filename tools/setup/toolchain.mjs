import { spawnSync } from 'node:child_process'
import { accessSync, constants, statSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { SetupError } from './setup-error.mjs'

const suffixes = process.platform === 'win32' ? ['.exe', '.cmd', '.bat'] : ['']

/** The path of a program on the search path (by default PATH), or undefined. */
export function findProgram(name, searchPath = process.env.PATH ?? '') {
  for (const folder of searchPath.split(delimiter)) {
    for (const suffix of suffixes) {
      const path = join(folder, name + suffix)
      if (folder !== '' && isExecutable(path)) return path
    }
  }
  return undefined
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}

/** Whether a CMake of at least 3.25 is on PATH. */
export function hasCMake() {
  const cmake = findProgram('cmake')
  if (cmake === undefined) return false
  const { stdout } = spawnSync(cmake, ['--version'], { encoding: 'utf8' })
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(stdout ?? '') ?? []
  return Number(major) > 3 || (Number(major) === 3 && Number(minor) >= 25)
}

/** Throws one sentence that says what to install when no C++20 compiler, of GCC since the kernels use its vector functions, or no program that drives it is there. */
export function requireCompiler(programs) {
  // Visual Studio is found by CMake and node-gyp themselves, not on PATH.
  if (process.platform === 'win32') return
  // As for CMake and make, CXX may hold arguments too, or a launcher in front: `ccache g++`.
  const [asked, ...words] = (process.env.CXX ?? '').split(' ').filter((word) => word !== '')
  const compiler = asked === undefined ? findAny(['c++', 'g++', 'clang++']) : (findProgram(asked) ?? asked)
  if (compiler === undefined || !isExecutable(compiler)) {
    throw new SetupError(`No C++ compiler was found${asked ? ` under the name in CXX, ${asked}` : ''}: ${advice()}`)
  }
  const probe = spawnSync(compiler, [...words, '-std=c++20', '-x', 'c++', '-fsyntax-only', '-'], {
    input:
      '#include <atomic>\n#include <bit>\n#include <concepts>\n#include <span>\nstatic_assert(std::has_single_bit(8u));\n',
    encoding: 'utf8',
  })
  if (probe.status !== 0) {
    throw new SetupError(`The compiler ${compiler} does not compile C++20 (GCC 11 does): ${advice()}`)
  }
  const macros = spawnSync(compiler, [...words, '-dM', '-E', '-x', 'c++', '-'], { input: '', encoding: 'utf8' })
  if (/^#define __clang__/m.test(macros.stdout ?? '')) {
    throw new SetupError(
      `The compiler ${compiler} is Clang, which lacks vector functions that the kernels are written with. Name a g++ in CXX, or ${advice()}`,
    )
  }
  for (const names of programs) {
    if (findAny(names) === undefined)
      throw new SetupError(`The native code needs ${names.join(' or ')}: ${advice(names)}`)
  }
}

function findAny(names) {
  for (const name of names) {
    const path = findProgram(name)
    if (path !== undefined) return path
  }
  return undefined
}

function advice(names = ['make']) {
  const last = names.at(-1)
  const then = 'then run the same command again.'
  if (process.platform === 'darwin')
    return `run \`xcode-select --install\` and \`brew install gcc\`, name its g++ in CXX, ${then}`
  for (const [manager, install] of [
    ['apt-get', `apt-get install g++ ${last}`],
    ['dnf', `dnf install gcc-c++ ${last}`],
    ['apk', `apk add g++ ${last}`],
    ['pacman', 'pacman -S base-devel'],
    ['zypper', `zypper install gcc-c++ ${last}`],
  ]) {
    if (findProgram(manager) !== undefined) return `run \`${install}\` as root, ${then}`
  }
  return `install g++ 11 or newer and ${last} with your system's package manager (on Debian and Ubuntu \`apt-get install g++ ${last}\`), ${then}`
}
