import { ModelError } from '../errors.js'

/** Tells whether a module name matches. Names are canonical: they start with `backbone.` or are `lm_head`. */
export type ModuleMatcher = (module: string) => boolean

/** The prefix of module and tensor names inside nibblet; transformers 5 says `model.` for the same modules. */
export const canonicalPrefix = 'backbone.'
const otherPrefix = 'model.'

/** `model.layers.0…` as `backbone.layers.0…`; other names are returned as they are. */
export function canonicalName(name: string): string {
  return name.startsWith(otherPrefix) ? canonicalPrefix + name.slice(otherPrefix.length) : name
}

/** A module under every name that quantization configs may call it by. */
function spellings(module: string): string[] {
  return module.startsWith(canonicalPrefix) ? [module, otherPrefix + module.slice(canonicalPrefix.length)] : [module]
}

/** Python's `fnmatch`: `*` any text, `?` one character, `[abc]` and `[!abc]` sets; everything else is literal. */
function globSource(pattern: string): string {
  return pattern.replace(
    /\[(!?)([^\]]+)\]|[\s\S]/g,
    (part: string, negated: string | undefined, set: string | undefined) => {
      if (part === '*') return '.*'
      if (part === '?') return '.'
      if (set !== undefined) return `[${negated === '!' ? '^' : ''}${set.replace(/[\\\]^[]/g, '\\$&')}]`
      return part.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
    },
  )
}

function compile(source: string, pattern: string, file: string): RegExp {
  try {
    return new RegExp(source, 's')
  } catch (cause) {
    throw new ModelError('BAD_FORMAT', `expected a valid module pattern in ${file}, got ${JSON.stringify(pattern)}.`, {
      cause,
    })
  }
}

/** A module and all that hold it, outermost first: `a.b.c` gives `a`, `a.b`, `a.b.c`. */
export function withAncestors(module: string): string[] {
  const parts = module.split('.')
  return parts.map((_, index) => parts.slice(0, index + 1).join('.'))
}

function literalMatcher(names: ReadonlySet<string>): ModuleMatcher {
  return (module) => withAncestors(module).some((ancestor) => names.has(ancestor))
}

/**
 * Matcher of ModelOpt's `exclude_modules` or `ignore`: names and wildcards as in Python's `fnmatch`; a plain name also
 * covers the modules below it.
 */
export function wildcardMatcher(patterns: readonly string[], file: string): ModuleMatcher {
  const wild = patterns.filter((pattern) => /[*?[]/.test(pattern))
  const literal = literalMatcher(new Set(patterns.filter((pattern) => !wild.includes(pattern)).map(canonicalName)))
  const expressions = wild.map((pattern) => compile(`^${globSource(pattern)}$`, pattern, file))
  return (module) =>
    literal(module) || spellings(module).some((name) => expressions.some((expression) => expression.test(name)))
}

/**
 * Matcher of compressed-tensors' `targets` and `ignore`: a module name, `re:` and a regular expression that must match
 * from the start of the name, or the class name `Linear`, which every module is that this is asked about.
 */
export function targetMatcher(patterns: readonly string[], file: string): ModuleMatcher {
  if (patterns.includes('Linear')) return () => true
  const expressions = patterns
    .filter((pattern) => pattern.startsWith('re:'))
    .map((pattern) => compile(`^(?:${pattern.slice(3)})`, pattern, file))
  const literal = literalMatcher(new Set(patterns.filter((pattern) => !pattern.startsWith('re:')).map(canonicalName)))
  return (module) =>
    literal(module) || spellings(module).some((name) => expressions.some((expression) => expression.test(name)))
}
