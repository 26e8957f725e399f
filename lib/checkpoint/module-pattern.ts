import { ModelError } from '../errors.js'
import { show } from './fields.js'
import { NameExpression, PatternError, type PatternNode, StateBudget } from './name-expression.js'
import { parseRegex, parseWildcard } from './name-pattern.js'

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

/** Compiles patterns that share a bound on their size. */
function compileAll(
  patterns: readonly string[],
  parse: (pattern: string) => PatternNode,
  file: string,
): readonly NameExpression[] {
  const budget = new StateBudget()
  return patterns.map((pattern) => {
    try {
      return new NameExpression(parse(pattern), budget)
    } catch (cause) {
      if (!(cause instanceof PatternError)) throw cause
      throw new ModelError(
        cause.kind === 'syntax' ? 'BAD_FORMAT' : 'UNSUPPORTED_MODEL',
        `expected a module pattern that nibblet can match in ${file}, got ${show(pattern)}: ${cause.message}.`,
        { cause },
      )
    }
  })
}

function matchesAny(expressions: readonly NameExpression[], module: string): boolean {
  return spellings(module).some((name) => expressions.some((expression) => expression.matches(name)))
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
  const expressions = compileAll(wild, parseWildcard, file)
  return (module) => literal(module) || matchesAny(expressions, module)
}

/**
 * Matcher of compressed-tensors' `targets` and `ignore`: a module name, `re:` and a regular expression that must match
 * from the start of the name, or the class name `Linear`, which every module is that this is asked about. The time that a
 * pattern takes is bounded whatever it says, since a config may come from anywhere.
 */
export function targetMatcher(patterns: readonly string[], file: string): ModuleMatcher {
  if (patterns.includes('Linear')) return () => true
  const expressions = compileAll(
    patterns.filter((pattern) => pattern.startsWith('re:')),
    (pattern) => parseRegex(pattern.slice(3)),
    file,
  )
  const literal = literalMatcher(new Set(patterns.filter((pattern) => !pattern.startsWith('re:')).map(canonicalName)))
  return (module) => literal(module) || matchesAny(expressions, module)
}
