import type { Flags } from './args.js'
import type { Command } from './command.js'

function flagLines(flags: Flags): string[] {
  const rows = Object.entries(flags).map(([name, { value, short, help }]) => {
    const left = `${short === undefined ? '' : `-${short}, `}--${name}${value === undefined ? '' : ` ${value}`}`
    return [left, help] as const
  })
  const width = Math.max(...rows.map(([left]) => left.length))
  return rows.map(([left, help]) => `  ${left.padEnd(width)}  ${help}`)
}

/** The text of `nibblet <command> --help`. */
export function commandHelp(command: Command, flags: Flags): string {
  const lines = [`Usage: nibblet ${command.name} ${command.usage}`, '', command.summary]
  if (command.details !== undefined) lines.push('', ...command.details)
  return `${[...lines, '', 'Flags:', ...flagLines(flags)].join('\n')}\n`
}

/** The text of `nibblet --help`. */
export function generalHelp(commands: readonly Command[]): string {
  const width = Math.max(...commands.map(({ name }) => name.length))
  const rows = commands.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`)
  return `${[
    'Usage: nibblet <command> [arguments] [flags]',
    '',
    'Runs Nemotron-H language models from four-bit checkpoints, on this machine.',
    '',
    'Commands:',
    ...rows,
    '',
    'Flags of every command: --help, --verbose. `nibblet --version` prints the version.',
    '',
    'A model is a bundled name (tiny) or the folder of a checkpoint. Try: nibblet chat tiny "What is 291 + 647?"',
  ].join('\n')}\n`
}
