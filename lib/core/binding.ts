import { closeSync, existsSync, openSync, readFileSync, readSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { BindingError } from '../errors.js'

const require = createRequire(import.meta.url)

/** The package's folder: the same two steps up from `lib/core` and from `dist/core`. */
const packageRoot = fileURLToPath(new URL('../../', import.meta.url))

/** What every build of the addon exports, whatever else it holds. */
export interface VersionedBinding {
  /** The version of the package that the addon was built from. */
  readonly version: string
}

/** A loaded addon, and where it came from. */
export interface LocatedBinding {
  readonly binding: VersionedBinding
  /** Absolute path of the file, or the name of the platform package. */
  readonly path: string
  /** `environment`: `NIBBLET_BINARY`; `build`: `build/Release` of this checkout; `package`: a platform package. */
  readonly source: 'environment' | 'build' | 'package'
}

/** One place where the addon was looked for, and why it was not taken from there. */
export interface BindingAttempt {
  readonly path: string
  readonly reason: string
}

export interface LocateOptions {
  /** Folder of the package that wants the addon. Default: this one's. */
  root?: string
  /** Path of the addon, which ends the search; '' for none. Default: the environment variable `NIBBLET_BINARY`. */
  binary?: string
}

let located: LocatedBinding | undefined

/**
 * The native addon, loaded at the first call. `T` is the type that the caller knows its exports by.
 *
 * @throws BindingError `NO_BINARY` when there is no addon for this machine, with every place tried in
 * `details.attempts`, or when one is there and cannot be loaded; `ABI_MISMATCH` when it was built from another version.
 * @example
 * const binding = loadBinding<NativeBinding>()
 */
export function loadBinding<T extends VersionedBinding>(): T {
  located ??= locateBinding()
  return located.binding as T
}

/**
 * Looks for the addon: the explicit path, then the one build path of the checkout, then the platform package. The first
 * that exists is taken; if it cannot be loaded that is an error, never a reason to go on.
 *
 * @throws BindingError as `loadBinding`
 */
export function locateBinding({
  root = packageRoot,
  binary = process.env.NIBBLET_BINARY ?? '',
}: LocateOptions = {}): LocatedBinding {
  if (binary !== '') {
    const path = resolve(binary)
    if (!existsSync(path)) {
      throw new BindingError(
        'NO_BINARY',
        `NIBBLET_BINARY names ${path}, which does not exist: correct it or unset it.`,
        {
          details: { attempts: [{ path, reason: 'no such file' }] },
        },
      )
    }
    return check({ path, source: 'environment', binding: load(path, root, () => require(path)) }, root)
  }

  const attempts: BindingAttempt[] = []
  const built = join(root, 'build/Release/nibblet.node')
  if (existsSync(built)) {
    // With its default list `bindings` would prefer build/Debug, so that a sanitizer build won silently.
    const options = {
      bindings: 'nibblet.node',
      module_root: root,
      try: [['module_root', 'build', 'Release', 'bindings']],
    }
    return check({ path: built, source: 'build', binding: load(built, root, () => require('bindings')(options)) }, root)
  }
  attempts.push({ path: built, reason: 'no such file' })

  const candidate = platformPackage()
  if (candidate === undefined) {
    attempts.push({ path: `@nibblet/${platformName()}`, reason: 'there is no prebuilt binary for this platform' })
  } else if (!isInstalled(candidate.name)) {
    attempts.push({ path: candidate.name, reason: 'the package is not installed' })
  } else {
    return check({ path: candidate.name, source: 'package', binding: load(candidate.name, root, candidate.load) }, root)
  }

  const tried = attempts.map(({ path, reason }) => `  ${path}: ${reason}`).join('\n')
  throw new BindingError(
    'NO_BINARY',
    `No native addon was found for ${platformName()}. Tried:\n${tried}\n${advice(root)}`,
    {
      details: { attempts },
    },
  )
}

/** Each `require` stands here with its name written out, so that bundlers see which packages may be wanted. */
function platformPackage(): { name: string; load: () => unknown } | undefined {
  switch (platformName()) {
    case 'linux-x64':
      return { name: '@nibblet/linux-x64', load: () => require('@nibblet/linux-x64') }
    case 'linux-arm64':
      return { name: '@nibblet/linux-arm64', load: () => require('@nibblet/linux-arm64') }
    default:
      return undefined
  }
}

/** Platform and architecture as the packages are named; the ones for Linux need glibc. */
function platformName(): string {
  const musl = process.platform === 'linux' && usesMusl()
  return `${process.platform}${musl ? '-musl' : ''}-${process.arch}`
}

/** Which C library Node itself was linked with: its loader's name stands near the start of the executable. */
function usesMusl(): boolean {
  const head = Buffer.alloc(4096)
  const file = openSync(process.execPath, 'r')
  try {
    readSync(file, head, 0, head.length, 0)
  } finally {
    closeSync(file)
  }
  return head.includes('/ld-musl-')
}

function isInstalled(name: string): boolean {
  try {
    require.resolve(name)
    return true
  } catch {
    return false
  }
}

function load(path: string, root: string, open: () => unknown): VersionedBinding {
  try {
    return open() as VersionedBinding
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    const message = `${path} is there but cannot be loaded: ${reason}\n${advice(root)}`
    throw new BindingError('NO_BINARY', message, { cause, details: { attempts: [{ path, reason }] } })
  }
}

function check(found: LocatedBinding, root: string): LocatedBinding {
  const { version } = readPackage(root)
  if (found.binding.version !== version) {
    const message = `${found.path} was built from nibblet ${found.binding.version}, but this is nibblet ${version}. ${advice(root)}`
    throw new BindingError('ABI_MISMATCH', message, { details: { expected: version, actual: found.binding.version } })
  }
  return found
}

/** The command to run next: in a checkout set-up builds the addon, an installed package wants its build tools first. */
function advice(root: string): string {
  if (existsSync(join(root, 'package-lock.json'))) return `Run \`npm run setup\` in ${resolve(root)}.`
  const { devDependencies } = readPackage(root)
  const tools = ['cmake-js', 'node-addon-api', 'node-api-headers'].map((name) => `${name}@${devDependencies[name]}`)
  return `Build it: \`npm install --no-save ${tools.join(' ')} && node ${join(root, 'tools/setup.mjs')}\`.`
}

function readPackage(root: string): { version: string; devDependencies: Readonly<Record<string, string>> } {
  return JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
}
