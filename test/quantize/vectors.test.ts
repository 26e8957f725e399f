import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { Device } from '../../lib/core/device.js'
import { MappedFile } from '../../lib/core/mapped-file.js'
import { StepInput } from '../../lib/engine/step-input.js'
import { decodeNvfp4 } from '../helpers/decode-nvfp4.js'
import { expectError } from '../helpers/expect-error.js'
import { folderWith } from '../helpers/safetensors.js'

interface Case {
  name: string
  columns: number
  values: number[]
  codes: string
  blockScales: string
}

/** By the numpy implementation of recipes/nvfp4.py. */
const vectors = JSON.parse(readFileSync(new URL('../fixtures/nvfp4-vectors.json', import.meta.url), 'utf8')) as {
  weights: (Case & { rows: number; scale: number })[]
  activations: (Case & { tokens: number; inputScale: number })[]
}
const device = Device.open('cpu')
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const isBf16 = (value: number) => (new Uint32Array(Float32Array.of(value).buffer)[0] as number) % 65536 === 0

/** Runs the op on a matrix in f32 or bf16. */
async function quantize(values: readonly number[], rows: number, columns: number, dtype: 'f32' | 'bf16' = 'f32') {
  using stream = device.stream({ threads: 2 })
  using buffer = device.buffer(8 * rows * columns + 256)
  const w = buffer.tensor(dtype, [rows, columns])
  const codes = buffer.tensor('u8', [rows, columns / 2], 4 * rows * columns)
  const blockScales = buffer.tensor('e4m3', [rows, Math.ceil(columns / 16)], 5 * rows * columns)
  const global = buffer.tensor('f32', [1], 8 * rows * columns)
  const floats = Float32Array.from(values)
  stream.write(w, dtype === 'f32' ? floats : Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16))
  stream.quantize(w, { codes, blockScales, global })
  const [a, b, c] = await Promise.all([stream.read(codes), stream.read(blockScales), stream.read(global)])
  return { codes: hex(a), blockScales: hex(b), scale: new Float32Array(c.slice().buffer)[0] }
}

describe('NVFP4 weights by the native op', () => {
  test.each(vectors.weights)('$name', async ({ values, rows, columns, codes, blockScales, scale }) => {
    const expected = { codes, blockScales, scale: Math.fround(scale) }
    expect(await quantize(values, rows, columns)).toEqual(expected)
    if (values.every(isBf16)) expect(await quantize(values, rows, columns, 'bf16')).toEqual(expected)
  })

  test.each([Number.NaN, Number.POSITIVE_INFINITY])('refuses %f', async (bad) => {
    const values = new Array(64).fill(1)
    values[37] = bad
    await expectError(() => quantize(values, 2, 32), 'OP_FAILED', 'NaN or infinity')
  })

  test('refuses columns that are no multiple of 16', async () => {
    await expectError(() => quantize(new Array(48).fill(1), 2, 24), 'INVALID_OPTION', 'blocks of 16', '24')
  })
})

/** x · Iᵀ with x quantised: every product is one quantised activation times the input scale, plus zeros. */
async function quantizedActivations(
  { values, tokens, columns, inputScale }: (typeof vectors.activations)[number],
  exact: boolean,
): Promise<Float32Array> {
  const identity = Float32Array.from({ length: columns * columns }, (_, at) => (at % (columns + 1) === 0 ? 1 : 0))
  const folder = await folderWith({ identity: new Uint8Array(identity.buffer) })
  using file = new MappedFile(join(folder, 'identity'))
  using stream = device.stream({ threads: 2, exact })
  using weight = device.weight({ format: 'f32', layout: exact ? 'rows' : 'panels', out: columns, in: columns })
  using buffer = device.buffer(8 * tokens * columns)
  const elements = { file, offset: 0, dtype: 'f32', name: 'identity' } as const
  stream.loadWeight(weight, { rows: columns, elements, inputScale })
  const x = buffer.tensor('f32', [tokens, columns])
  const y = buffer.tensor('f32', [tokens, columns], 4 * tokens * columns)
  stream.write(x, Float32Array.from(values))
  stream.step(new StepInput().pack([{ slot: 0, position: 0, ids: new Uint32Array(tokens), pages: [0], rows: [] }]))
  stream.linear(x, weight, { add: y, quantizeInput: true })
  return new Float32Array((await stream.read(y)).slice().buffer)
}

describe('NVFP4 activations (W4A4) by the linear op', () => {
  test.each(vectors.activations)('$name', async (vector) => {
    const { codes, blockScales, inputScale } = vector
    const expected = decodeNvfp4(Buffer.from(codes, 'hex'), Buffer.from(blockScales, 'hex'), Math.fround(inputScale))
    // Sums with zeros make no difference of +0 and -0.
    const plain = (values: Float32Array) => Array.from(values, (value) => value + 0)
    expect(plain(await quantizedActivations(vector, true))).toEqual(plain(expected))
    expect(plain(await quantizedActivations(vector, false))).toEqual(plain(expected))
  })
})
