import { parseArgs } from 'node:util'
import { nearestName } from '../generate/nearest-name.js'

/** The command line itself is wrong: exit code 2, with the usage beside it. */
export class UsageError extends Error {}

/** One flag of a command. */
export interface Flag {
  /** Stands for the value in the help, such as `N`; a flag without one takes no value. */
  readonly value?: string
  readonly help: string
  /** One letter, used as `-h`. */
  readonly short?: string
  /** May be given more than once. */
  readonly multiple?: boolean
}

export type Flags = Readonly<Record<string, Flag>>

/** The arguments of one command, taken apart. Values are still text: the getters convert and check them. */
export class Arguments {
  readonly positionals: readonly string[]
  readonly #values: Readonly<Record<string, unknown>>

  constructor(positionals: readonly string[], values: Readonly<Record<string, unknown>>) {
    this.positionals = positionals
    this.#values = values
  }

  has(name: string): boolean {
    return this.#values[name] !== undefined
  }

  on(name: string): boolean {
    return this.#values[name] === true
  }

  text(name: string): string | undefined {
    const value = this.#values[name]
    return typeof value === 'string' ? value : undefined
  }

  texts(name: string): readonly string[] {
    const value = this.#values[name]
    return Array.isArray(value) ? value : []
  }

  /** A decimal number within the bounds, or `undefined` when the flag was not given. */
  number(name: string, bounds: { min?: number; max?: number; above?: number } = {}): number | undefined {
    const text = this.text(name)
    if (text === undefined) return undefined
    const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN
    return this.#bounded(name, text, value, 'a number', bounds)
  }

  /** A whole number within the bounds, or `undefined` when the flag was not given. */
  integer(name: string, bounds: { min?: number; max?: number } = {}): number | undefined {
    const text = this.text(name)
    if (text === undefined) return undefined
    const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN
    return this.#bounded(name, text, Number.isSafeInteger(value) ? value : Number.NaN, 'a whole number', bounds)
  }

  /** One of the choices, or `undefined` when the flag was not given. */
  choice<T extends string>(name: string, choices: readonly T[]): T | undefined {
    const text = this.text(name)
    if (text === undefined) return undefined
    const found = choices.find((choice) => choice === text)
    if (found === undefined) throw new UsageError(`Expected ${choices.join(' or ')} for --${name} but got '${text}'.`)
    return found
  }

  #bounded(
    name: string,
    text: string,
    value: number,
    noun: string,
    {
      min = Number.NEGATIVE_INFINITY,
      max = Number.POSITIVE_INFINITY,
      above,
    }: { min?: number; max?: number; above?: number },
  ): number {
    if (value >= min && value <= max && (above === undefined || value > above)) return value
    const low = above !== undefined ? ` above ${above}` : Number.isFinite(min) ? ` of at least ${min}` : ''
    const high = Number.isFinite(max) ? `${low === '' ? '' : ' and'} at most ${max}` : ''
    throw new UsageError(`Expected ${noun}${low}${high} for --${name} but got '${text}'.`)
  }
}

/**
 * Takes the arguments of a command apart, strictly: an unknown flag, a missing or an unwanted value is a `UsageError`
 * that names the nearest flag.
 */
export function parseArguments(argv: readonly string[], flags: Flags): Arguments {
  const options: Record<string, { type: 'string' | 'boolean'; short?: string; multiple?: boolean }> = {}
  for (const [name, { value, short, multiple }] of Object.entries(flags)) {
    options[name] = {
      type: value === undefined ? 'boolean' : 'string',
      ...(short === undefined ? {} : { short }),
      ...(multiple === undefined ? {} : { multiple }),
    }
  }
  try {
    const { positionals, values } = parseArgs({ args: [...argv], options, strict: true, allowPositionals: true })
    return new Arguments(positionals, values)
  } catch (error) {
    throw usageError(error, flags)
  }
}

function usageError(error: unknown, flags: Flags): unknown {
  if (!(error instanceof Error) || !('code' in error)) return error
  const flag = /'(?:-\w, )?(-[^' ]*)/.exec(error.message)?.[1] ?? ''
  const name = flag.replace(/^--?/, '')
  if (error.code === 'ERR_PARSE_ARGS_UNKNOWN_OPTION') {
    const near = nearestName(name, Object.keys(flags))
    const advice =
      near === undefined ? "Text that begins with '-' goes behind '--', after all flags." : `Did you mean --${near}?`
    return new UsageError(`Unknown flag ${flag}. ${advice}`)
  }
  if (error.code === 'ERR_PARSE_ARGS_INVALID_OPTION_VALUE') {
    const value = flags[name]?.value
    if (value === undefined) return new UsageError(`${flag} takes no value.`)
    const ambiguous = error.message.includes('ambiguous')
    return new UsageError(
      ambiguous
        ? `${flag} needs a value (${value}), and the next argument looks like a flag. A value that begins with '-' is written ${flag}=-1.`
        : `${flag} needs a value: ${flag} ${value}.`,
    )
  }
  return error
}
