import type { LoadOptions } from '../load-options.js'
import { type Arguments, type Flags, UsageError } from './args.js'
import type { Io, Output } from './output.js'
import type { Progress } from './progress.js'
import type { CliModel, Runtime } from './runtime.js'

/** What a running command is given. */
export interface Context {
  readonly io: Io
  readonly output: Output
  readonly progress: Progress
  readonly runtime: Runtime
  /** Aborted by Ctrl-C and when the reader of stdout has gone. */
  readonly signal: AbortSignal
  /** While the returned function has not been called, Ctrl-C calls the listener instead of aborting `signal`. */
  onInterrupt(listener: () => void): () => void
}

/** One command of the command line. */
export interface Command {
  readonly name: string
  /** What follows the name, as in `<model> --prompt <text>`. */
  readonly usage: string
  /** One line for the list of commands. */
  readonly summary: string
  /** Further lines of `--help`. */
  readonly details?: readonly string[]
  readonly flags: Flags
  /** Exit code, or nothing for 0. */
  run(args: Arguments, context: Context): Promise<number | undefined>
}

/** Thrown to end the command with 130, the code of a program that Ctrl-C has stopped. */
export class Interrupted extends Error {}

/** Exactly the named positionals, or a `UsageError` that says which one is missing or too much. */
export function takePositionals(args: Arguments, names: readonly string[]): string[] {
  const { positionals } = args
  const missing = names[positionals.length]
  if (missing !== undefined) throw new UsageError(`<${missing}> is missing.`)
  const surplus = positionals[names.length]
  if (surplus !== undefined)
    throw new UsageError(`'${surplus}' is one argument too many. Quote texts that have spaces.`)
  return [...positionals]
}

/** Loads a model with progress, hands it to `use`, and disposes of it whatever happens. */
export async function withModel<T>(
  context: Context,
  name: string,
  options: LoadOptions,
  use: (model: CliModel) => Promise<T>,
): Promise<T> {
  const { runtime, progress, signal } = context
  let model: CliModel
  try {
    model = await runtime.loadModel(name, {
      ...options,
      signal,
      onProgress: ({ stage, loaded, total }) => progress.update(`loading (${stage})`, loaded, total, { bytes: true }),
    })
  } finally {
    progress.clear()
  }
  try {
    return await use(model)
  } finally {
    await model.dispose()
  }
}
