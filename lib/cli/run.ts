import { NibbletError } from '../errors.js'
import { nearestName } from '../generate/nearest-name.js'
import { type Flags, parseArguments, UsageError } from './args.js'
import { benchCommand } from './bench.js'
import { chatCommand } from './chat.js'
import { type Command, Interrupted } from './command.js'
import { doctorCommand } from './doctor.js'
import { evalCommand } from './eval.js'
import { generateCommand } from './generate.js'
import { commandHelp, generalHelp } from './help.js'
import { inspectCommand } from './inspect.js'
import { type Io, Output, PipeClosed } from './output.js'
import { Progress } from './progress.js'
import { quantizeCommand } from './quantize.js'
import type { Runtime } from './runtime.js'
import { scoreCommand } from './score.js'
import { synthCommand } from './synth.js'

const commands: readonly Command[] = [
  chatCommand,
  generateCommand,
  scoreCommand,
  evalCommand,
  inspectCommand,
  doctorCommand,
  quantizeCommand,
  benchCommand,
  synthCommand,
]

const commonFlags: Flags = {
  help: { short: 'h', help: 'show this text' },
  verbose: { help: 'show the stack of an error' },
}

/**
 * Runs one command line and resolves with its exit code: 0, 1 for an error while running, 2 for a wrong command line,
 * 130 after Ctrl-C. A closed pipe ends the command quietly with 0. It never ends the process itself.
 */
export async function run(argv: readonly string[], io: Io, runtime: Runtime): Promise<number> {
  const abort = new AbortController()
  const output = new Output(io, (reason) => abort.abort(reason))
  const progress = new Progress(output)
  const interrupt = () => {
    // The next Ctrl-C takes its default way, should the command not heed this one.
    unlisten()
    abort.abort(new Interrupted('interrupted'))
  }
  const listeners: (() => void)[] = [interrupt]
  const unlisten = io.onInterrupt(() => listeners.at(-1)?.())
  const onInterrupt = (listener: () => void) => {
    listeners.push(listener)
    return () => {
      listeners.splice(listeners.indexOf(listener), 1)
    }
  }
  let command: Command | undefined
  try {
    const [name, ...rest] = argv
    if (name === undefined || name === '--help' || name === '-h') {
      await output.write(generalHelp(commands))
      return 0
    }
    if (name === '--version' || name === '-v') {
      await output.write(`${runtime.version}\n`)
      return 0
    }
    command = findCommand(name)
    const flags = { ...command.flags, ...commonFlags }
    const args = parseArguments(rest, flags)
    if (args.on('help')) {
      await output.write(commandHelp(command, flags))
      return 0
    }
    return (await command.run(args, { io, output, progress, runtime, signal: abort.signal, onInterrupt })) ?? 0
  } catch (error) {
    progress.clear()
    const cause = abort.signal.aborted && isAbort(error, abort.signal) ? abort.signal.reason : error
    if (cause instanceof Interrupted) return 130
    if (cause instanceof PipeClosed) return 0
    return report(error, command, output, argv.includes('--verbose'))
  } finally {
    unlisten()
  }
}

/** An error that stands for our own abort, also when something in between has wrapped the reason. */
function isAbort(error: unknown, { reason }: AbortSignal): boolean {
  return error === reason || (error instanceof Error && (error.cause === reason || error.name === 'AbortError'))
}

function findCommand(name: string): Command {
  const command = commands.find((candidate) => candidate.name === name)
  if (command !== undefined) return command
  if (name.startsWith('-')) throw new UsageError(`Unknown flag ${name}. Flags follow the command.`)
  const names = commands.map((candidate) => candidate.name)
  const near = nearestName(name, names)
  throw new UsageError(
    `Unknown command '${name}'. ${near === undefined ? `The commands are ${names.join(', ')}.` : `Did you mean ${near}?`}`,
  )
}

function report(error: unknown, command: Command | undefined, output: Output, verbose: boolean): number {
  const message = error instanceof Error ? error.message : String(error)
  if (error instanceof UsageError) {
    const help = command === undefined ? 'nibblet --help' : `nibblet ${command.name} --help`
    output.note(`nibblet: ${message}\nSee \`${help}\`.\n`)
    return 2
  }
  const code = NibbletError.is(error) ? ` (${error.code})` : ''
  output.note(`nibblet: ${message}${code}\n`)
  if (verbose && error instanceof Error) output.note(`${stackOf(error)}\n`)
  return 1
}

function stackOf(error: Error): string {
  const own = error.stack ?? String(error)
  return error.cause instanceof Error ? `${own}\ncaused by: ${stackOf(error.cause)}` : own
}
