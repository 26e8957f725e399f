import { closeSync, existsSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { chooseCuda } from './cuda-archs.mjs'
import { isFresh, listFiles, readJson } from './fingerprint.mjs'

/** Where the addon lies once it is built: the one path that lib/core/binding.ts tries. */
export const addonPath = 'build/Release/nibblet.node'
export const addonStamp = 'build/Release/nibblet.stamp.json'
export const scriptsOutput = 'dist/.tsbuildinfo'
export const scriptsStamp = 'dist/.stamp.json'

/**
 * Which parts of the checkout must be made anew. An installed package has no lock file and carries `dist`: only its
 * addon can be stale.
 */
export function findStale(root) {
  const checkout = existsSync(join(root, 'package-lock.json'))
  return {
    packages: checkout && !arePackagesFresh(root),
    addon: !isAddonFresh(root),
    scripts: checkout && !isFresh(root, scriptsStamp, scriptsOutput, ...scriptsInputs(root)),
  }
}

/**
 * Whether `node_modules` holds what `package-lock.json` asks for, by npm's own record of what it installed. Optional
 * packages may be absent: those of other platforms always are.
 */
export function arePackagesFresh(root) {
  const wanted = readJson(join(root, 'package-lock.json'))?.packages
  const installed = readJson(join(root, 'node_modules/.package-lock.json'))?.packages
  if (wanted === undefined || installed === undefined) return false
  if (Object.keys(installed).some((path) => wanted[path] === undefined)) return false
  return Object.entries(wanted).every(([path, want]) => {
    // npm's record leaves out the root and, as we do, what a link points to.
    if (path === '' || !path.includes('node_modules/')) return true
    const have = installed[path]
    if (have === undefined) return want.optional === true || want.devOptional === true
    return want.version === have.version && want.integrity === have.integrity && want.link === have.link
  })
}

/** Whether the addon was built from the present sources, for this machine, with the present options. */
export function isAddonFresh(root) {
  // Switching between CMake and node-gyp is no reason to build again, unless one of them is asked for.
  const asked = process.env.NIBBLET_BUILDER
  if (asked !== undefined && readJson(join(root, addonStamp))?.builder !== asked) return false
  return isFresh(root, addonStamp, addonPath, ...addonInputs(root))
}

/** The files and settings that the addon depends on. */
export function addonInputs(root) {
  const { version, devDependencies = {} } = readJson(join(root, 'package.json')) ?? {}
  const options = buildOptions(root)
  const settings = {
    platform: process.platform,
    arch: process.arch,
    libc: process.platform === 'linux' ? libc() : '',
    version,
    headers: [devDependencies['node-addon-api'], devDependencies['node-api-headers']],
    options,
  }
  const files = ['CMakeLists.txt', 'binding.gyp', 'sources.json', 'kernels', 'native']
  return [listFiles(root, options.cuda === undefined ? files : [...files, 'tools/setup/cuda.cmake']), settings]
}

/** What changes the addon: the environment variables for it that are set, and the GPU targets when it has GPU code. */
export function buildOptions(root) {
  const names = ['CXX', 'NIBBLET_WERROR']
  const set = Object.fromEntries(names.flatMap((name) => (process.env[name] ? [[name, process.env[name]]] : [])))
  const cuda = chooseCuda(process.env, readJson(join(root, addonStamp))?.settings?.options?.cuda)
  return cuda === undefined ? set : { ...set, cuda }
}

/** The files and settings that `dist` depends on. */
export function scriptsInputs(root) {
  const { packages = {} } = readJson(join(root, 'package-lock.json')) ?? {}
  const compiler = ['typescript', '@types/node'].map((name) => packages[`node_modules/${name}`]?.version)
  return [listFiles(root, ['tsconfig.json', 'lib']), { compiler }]
}

/** Which C library this Node was linked with: the loader's name stands near the start of its file. */
function libc() {
  const head = Buffer.alloc(4096)
  const file = openSync(process.execPath, 'r')
  try {
    readSync(file, head, 0, head.length, 0)
  } finally {
    closeSync(file)
  }
  return head.includes('/ld-musl-') ? 'musl' : 'glibc'
}
