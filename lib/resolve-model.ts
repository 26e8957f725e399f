import { existsSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ModelError } from './errors.js'
import { isSynthetic, parseSyntheticName } from './synthetic/synthetic.js'

const require = createRequire(import.meta.url)
/** The same two steps up from `lib` and from `dist`. */
const packageRoot = fileURLToPath(new URL('..', import.meta.url))

/** Models that ship with nibblet, each a package of its own. */
const bundled: Readonly<Record<string, { folder: string; package: string }>> = {
  tiny: { folder: 'models/tiny', package: 'nibblet-model-tiny' },
}

function isFolder(path: string): boolean {
  return existsSync(path) && statSync(path).isDirectory()
}

/** The folder of an installed package, without running any of its code. */
function packageFolder(name: string): string | undefined {
  try {
    return dirname(require.resolve(`${name}/package.json`))
  } catch {
    return undefined
  }
}

function bundledFolder(name: string, tried: string[]): string | undefined {
  if (!Object.hasOwn(bundled, name)) {
    tried.push(`a bundled model: there is only ${Object.keys(bundled).join(', ')}`)
    return undefined
  }
  const model = bundled[name] as (typeof bundled)[string]
  const checkout = join(packageRoot, model.folder)
  if (existsSync(join(checkout, 'config.json'))) return checkout
  tried.push(`${checkout}: no such model`)
  const installed = packageFolder(model.package)
  if (installed) return installed
  tried.push(`the package ${model.package}: not installed (npm install ${model.package})`)
  return undefined
}

/**
 * The folder that a model name stands for: a bundled name, or the path of a folder. A synthetic model has none and stands for
 * itself: `Checkpoint.open` takes either.
 *
 * @throws ModelError MODEL_NOT_FOUND with everything that was tried in `details.tried`
 * @example
 * resolveModel('tiny')
 * resolveModel('./my-checkpoint')
 * resolveModel('synthetic:nano-30b')
 */
export function resolveModel(name: string): string {
  const tried: string[] = []
  if (isSynthetic(name)) {
    parseSyntheticName(name)
    return name
  }
  const scheme = /^([a-z][a-z0-9+.-]+):/i.exec(name)?.[1]
  const found = scheme === undefined ? bundledFolder(name, tried) : undefined
  if (found !== undefined) return found
  const folder = resolve(name)
  if (isFolder(folder)) return folder
  if (scheme !== undefined) tried.push(`the scheme ${scheme}: the only one is synthetic`)
  tried.push(`${folder}: no such folder`)
  throw new ModelError(
    'MODEL_NOT_FOUND',
    `there is no model '${name}'. Tried:\n${tried.map((line) => `  ${line}`).join('\n')}\n` +
      "Give a bundled name ('tiny'), the folder of a checkpoint, or synthetic:nano-30b.",
    { details: { tried } },
  )
}
