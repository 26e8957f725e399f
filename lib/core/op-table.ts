import { RequestError } from '../errors.js'
import { type Handle, native, type OpSchema } from './native.js'
import { Tensor } from './tensor.js'
import type { Weight } from './weight.js'

export type Operands = Readonly<Record<string, Tensor | Weight | undefined>>

interface Row {
  index: number
  schema: OpSchema
}

let table: Map<string, Row> | undefined

function row(op: string): Row {
  table ??= new Map(
    native()
      .opTable()
      .map((schema, index) => [schema.name, { index, schema }]),
  )
  const found = table.get(op)
  if (found === undefined) throw new RequestError('INVALID_OPTION', `this build of nibblet has no op '${op}'`)
  return found
}

/** Puts operands and attributes in the order of the op's row in the native table, which checks them, and enqueues the op. */
export function enqueueOp(
  stream: Handle<'stream'>,
  op: string,
  operands: Operands,
  attributes: Readonly<Record<string, number | boolean>>,
): void {
  const { index, schema } = row(op)
  const packed = schema.operands.map(({ name }) => {
    const operand = operands[name]
    return operand instanceof Tensor ? operand.pack() : operand?.handle
  })
  native().enqueue(
    stream,
    index,
    packed,
    schema.attributes.map((name) => Number(attributes[name])),
  )
}
