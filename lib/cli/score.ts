import { type Arguments, UsageError } from './args.js'
import { type Command, type Context, takePositionals, withModel } from './command.js'
import { loadOptions, modelFlags } from './flags.js'

export const scoreCommand: Command = {
  name: 'score',
  usage: '<model> --ids 1,5,9 [--last N]',
  summary: 'Prints the logits of given token ids, for comparing implementations.',
  details: [
    'No token is added. Prints JSON: {"argmax": [one id per position], "logits": [[every vocabulary entry] of the last',
    'N positions]}. Logits are float32, written with as many digits as tell them apart.',
  ],
  flags: {
    ids: { value: 'IDS', help: 'token ids with commas between them' },
    last: { value: 'N', help: 'logits of the last N positions only (default: all)' },
    ...modelFlags,
  },
  run,
}

function parseIds(text: string | undefined): number[] {
  if (text === undefined) throw new UsageError('--ids is missing: give token ids, as in --ids 1,5,9.')
  return text.split(',').map((part) => {
    const id = part.trim()
    if (!/^\d+$/.test(id) || !Number.isSafeInteger(Number(id))) {
      throw new UsageError(`Expected token ids with commas between them for --ids but got '${part}'.`)
    }
    return Number(id)
  })
}

async function run(args: Arguments, context: Context): Promise<undefined> {
  const [name = ''] = takePositionals(args, ['model'])
  const ids = parseIds(args.text('ids'))
  const last = args.integer('last', { min: 1 })
  if (last !== undefined && last > ids.length) {
    throw new UsageError(`--last is ${last}, but --ids has only ${ids.length} positions.`)
  }
  const { output, signal } = context
  await withModel(context, name, loadOptions(args), async (model) => {
    const { argmax, logits } = await model.score(ids, { ...(last === undefined ? {} : { last }), signal })
    await output.write(`{"argmax": ${JSON.stringify(Array.from(argmax))}, "logits": [`)
    for (const [i, row] of logits.entries()) await output.write(`${i === 0 ? '' : ', '}${rowJson(row, i)}`)
    await output.write(']}\n')
  })
}

/** Nine significant digits tell every float32 apart. */
function rowJson(row: Float32Array, position: number): string {
  const numbers = Array.from(row, (value, id) => {
    // JSON has no spelling for it, and no working model gives it.
    if (!Number.isFinite(value)) throw new Error(`The logit of token ${id} in row ${position} is ${value}.`)
    return Number(value.toPrecision(9))
  })
  return JSON.stringify(numbers)
}
