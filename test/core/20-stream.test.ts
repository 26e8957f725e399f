import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { Device, type FileTensor, MappedFile, type Stream } from '../../lib/core/index.js'
import { StepInput } from '../../lib/engine/step-input.js'
import { DeviceError, ModelError } from '../../lib/errors.js'
import { expectError } from '../helpers/expect-error.js'
import { buildSafetensors, f32, folderWith } from '../helpers/safetensors.js'

const device = Device.open('cpu')

function openStream(options: { exact?: boolean } = { exact: true }): Stream {
  const stream = device.stream({ threads: 2, ...options })
  onTestFinished(() => stream.dispose())
  return stream
}

/** A tensor of these values in a buffer of its own. */
function tensorOf(stream: Stream, values: readonly number[], shape: readonly number[]) {
  const buffer = device.buffer(4 * values.length)
  onTestFinished(() => buffer.dispose())
  const tensor = buffer.tensor('f32', shape)
  stream.write(tensor, Float32Array.from(values))
  return tensor
}

function floats(bytes: Uint8Array): number[] {
  return [...new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)]
}

/** A step of one sequence with these tokens; logits of the last are wanted. */
function stepOf(ids: readonly number[]): Int32Array {
  return new StepInput().pack([
    { slot: 0, position: 0, ids: Uint32Array.from(ids), pages: [0], rows: [ids.length - 1] },
  ])
}

/** A mapped file of float32 tensors, and where each of them lies. */
async function mapTensors(tensors: Record<string, number[]>) {
  const bytes = buildSafetensors(
    Object.fromEntries(Object.entries(tensors).map(([name, values]) => [name, f32(values)])),
  )
  const path = join(await folderWith({ 'model.safetensors': bytes }), 'model.safetensors')
  const file = new MappedFile(path)
  onTestFinished(() => file.dispose())
  let offset = bytes.length - 4 * Object.values(tensors).flat().length
  const found: Record<string, FileTensor> = {}
  for (const [name, values] of Object.entries(tensors)) {
    found[name] = { file, offset, dtype: 'f32', name }
    offset += 4 * values.length
  }
  return { path, tensors: found as Record<string, FileTensor> & { [name: string]: FileTensor } }
}

describe('ops', () => {
  test('embed and linear, from a safetensors file', async () => {
    const stream = openStream()
    const table = [1, 2, 3, 4, -1, 0.5, 0, 0]
    const weight = [1, 0, 0, 1, 2, -3]
    const { tensors } = await mapTensors({ table, weight })
    using buffer = device.buffer(1024)
    using matrix = device.weight({ format: 'f32', layout: 'rows', out: 3, in: 2 })
    const embedding = buffer.tensor('f32', [4, 2])
    stream.loadTensor(embedding, tensors.table as FileTensor)
    stream.loadWeight(matrix, { rows: 3, elements: tensors.weight as FileTensor, scale: 2 })
    const bias = tensorOf(stream, [0, 10, 100], [3])
    stream.step(stepOf([2, 0, 1]))
    const forward = () => stream.linear(stream.embed(embedding, 3), matrix, { bias })
    stream.fit(forward)
    const y = stream.scope(() => stream.read(forward()))
    // Rows [-1, 0.5], [1, 2], [3, 4] times [[1, 0], [0, 1], [2, -3]], by 2, and the bias.
    expect(floats(await y)).toEqual([-2, 11, 93, 2, 14, 92, 6, 18, 88])
  })

  test('linear: rows, norm, relu2, residual', async () => {
    const stream = openStream()
    const { tensors } = await mapTensors({ weight: [1, 1, 1, -1] })
    using matrix = device.weight({ format: 'f32', layout: 'rows', out: 2, in: 2 })
    stream.loadWeight(matrix, { rows: 2, elements: tensors.weight as FileTensor })
    const x = tensorOf(stream, [3, 4, 1, 2], [2, 2])
    const norm = tensorOf(stream, [1, 2], [2])
    stream.step(stepOf([0, 0]))
    const all = () => ({
      plain: stream.linear(x, matrix),
      rows: stream.linear(x, matrix, { rows: 1 }),
      relu2: stream.linear(x, matrix, { activation: 'relu2' }),
      normed: stream.linear(x, matrix, { norm }),
    })
    stream.fit(all)
    const { plain, rows, relu2, normed } = stream.scope(() => {
      const tensors = all()
      return {
        plain: stream.read(tensors.plain),
        rows: stream.read(tensors.rows),
        relu2: stream.read(tensors.relu2),
        normed: stream.read(tensors.normed),
      }
    })
    expect(floats(await plain)).toEqual([7, -1, 3, -1])
    expect(floats(await rows)).toEqual([3, -1])
    expect(floats(await relu2)).toEqual([49, 0, 9, 0])
    const rms = [Math.sqrt(12.5), Math.sqrt(2.5)] as const
    const wanted = [11 / rms[0], -5 / rms[0], 5 / rms[1], -3 / rms[1]]
    for (const [i, value] of floats(await normed).entries()) expect(value).toBeCloseTo(wanted[i] as number, 5)
    stream.linear(x, matrix, { add: x })
    expect(floats(await stream.read(x))).toEqual([10, 3, 4, 1])
  })

  test('write is copied at once, and in stream order', async () => {
    const stream = openStream()
    const data = Float32Array.from([1, 2])
    const x = tensorOf(stream, [0, 0], [2])
    stream.write(x, data)
    data.fill(9)
    const first = stream.read(x)
    stream.write(x, new Float32Array(new SharedArrayBuffer(8)))
    expect(floats(await first)).toEqual([1, 2])
    expect(floats(await stream.read(x))).toEqual([0, 0])
    stream.write(x, Buffer.from(Float32Array.from([5, 6]).buffer))
    expect(floats(await stream.read(x))).toEqual([5, 6])
  })

  test('arguments that do not fit name the op and the operand', async () => {
    const stream = openStream()
    using buffer = device.buffer(1024)
    using matrix = device.weight({ format: 'f32', layout: 'rows', out: 3, in: 2 })
    const call = (body: () => unknown) => {
      stream.fit(() => void body())
      return () => stream.scope(body)
    }
    const x = buffer.tensor('f32', [2, 4])
    await expectError(
      call(() => stream.linear(x, matrix)),
      'INVALID_OPTION',
      'linear',
      '`x`',
      'f32 [2, 4]',
    )
    const bf16 = buffer.tensor('bf16', [2])
    const good = buffer.tensor('f32', [2, 2])
    await expectError(
      call(() => stream.linear(good, matrix, { norm: bf16 })),
      'INVALID_OPTION',
      'linear',
      '`norm`',
    )
    await expectError(
      call(() => stream.linear(good, matrix, { epsilon: Number.NaN })),
      'INVALID_OPTION',
      '`epsilon`',
    )
    await expectError(
      call(() => stream.linear(good, matrix, { quantizeInput: true })),
      'INVALID_OPTION',
      'input scale',
    )
    await expectError(
      call(() => stream.embed(buffer.tensor('i32', [2, 2]), 1)),
      'INVALID_OPTION',
      'embed',
      '`table`',
    )
    // None of these was enqueued.
    await stream.sync()
  })
})

test('a CPU has no gaps between launches', () => {
  const stream = openStream()
  expect(stream.timeGaps(true)).toEqual(new Float32Array())
  stream.dispose()
  expect(() => stream.timeGaps(false)).toThrow(expect.objectContaining({ code: 'DISPOSED' }))
})

describe('failures', () => {
  test('a failing op rejects what waits, then every call, and another stream goes on', async () => {
    const stream = openStream()
    const table = tensorOf(stream, [1, 2, 3, 4], [2, 2])
    stream.fit(() => stream.embed(table, 1))
    await stream.sync()
    stream.step(stepOf([5]))
    const waiting = stream.scope(() => {
      stream.embed(table, 1)
      return [stream.sync(), stream.read(table)]
    })
    for (const outcome of await Promise.allSettled(waiting)) {
      const error = await expectError(
        () => (outcome.status === 'rejected' ? Promise.reject(outcome.reason) : undefined),
        'OP_FAILED',
        'token id 5',
        'vocabulary of 2',
      )
      expect(error).toBeInstanceOf(DeviceError)
      expect(error.details).toEqual({ op: 'embed' })
    }
    await expectError(() => stream.sync(), 'OP_FAILED', 'token id 5')
    await expectError(() => stream.write(table, new Float32Array(4)), 'OP_FAILED')
    const other = openStream()
    expect(floats(await other.read(table))).toEqual([1, 2, 3, 4])
  })

  test('dispose rejects what waits', async () => {
    const stream = openStream()
    const pending = Array.from({ length: 5 }, () => stream.sync())
    stream.dispose()
    for (const result of await Promise.allSettled(pending)) {
      // Those that were done by then are done.
      if (result.status === 'rejected') expect(result.reason.code).toBe('STREAM_FAILED')
    }
    await expectError(() => stream.read(device.buffer(4).tensor('f32', [1])), 'DISPOSED')
  })
})

describe('files', () => {
  test('one that is not there, and one that is too short', async () => {
    const missing = await expectError(
      () => new MappedFile('/nowhere/x.safetensors'),
      'BAD_FORMAT',
      '/nowhere/x.safetensors',
    )
    expect(missing).toBeInstanceOf(ModelError)
    const stream = openStream()
    const { path, tensors } = await mapTensors({ weight: [1, 2] })
    using buffer = device.buffer(64)
    await expectError(
      () => stream.loadTensor(buffer.tensor('f32', [3]), tensors.weight as FileTensor),
      'BAD_FORMAT',
      path,
      'truncated',
    )
    await expectError(
      () => stream.loadTensor(buffer.tensor('bf16', [2]), tensors.weight as FileTensor),
      'INVALID_OPTION',
      '`weight`',
    )
  })

  test('only matrices in panels or fragments are made compact', async () => {
    const stream = openStream()
    using matrix = device.weight({ format: 'bf16', layout: 'rows', out: 16, in: 256 })
    await expectError(() => stream.compactWeight(matrix), 'INVALID_OPTION', 'fragments or panels')
    expect(matrix.exceptions).toBeUndefined()
    using other = device.weight({ format: 'bf16', layout: 'panels', out: 16, in: 256 })
    const captured = () => stream.capture(() => stream.compactWeight(other) as undefined)
    await expectError(captured, 'INVALID_OPTION', 'during capture')
  })

  test('parts of a weight in one call, in any order', async () => {
    const stream = openStream()
    const { path, tensors } = await mapTensors({ upper: [1, 2], lower: [3, 4, 5, 6] })
    using matrix = device.weight({ format: 'f32', layout: 'rows', out: 3, in: 2 })
    const upper = { rows: 1, elements: tensors.upper as FileTensor, scale: 10 }
    const lower = { firstRow: 1, rows: 2, elements: tensors.lower as FileTensor }
    // One part that does not fit, and none of the call is loaded.
    await expectError(
      () => stream.loadWeight(matrix, [lower, { ...upper, scale: Number.NaN }]),
      'BAD_FORMAT',
      '`upper`',
      path,
    )
    await expectError(() => stream.loadWeight(matrix, [upper, { ...lower, firstRow: 2 }]), 'INVALID_OPTION', 'inside')
    stream.loadWeight(matrix, [])
    stream.loadWeight(matrix, [lower, upper])
    const x = tensorOf(stream, [1, 1], [1, 2])
    stream.step(stepOf([0]))
    const forward = () => stream.linear(x, matrix)
    stream.fit(forward)
    expect(floats(await stream.scope(() => stream.read(forward())))).toEqual([30, 7, 11])
  })

  test('a scale that is no number', async () => {
    const stream = openStream()
    const { path, tensors } = await mapTensors({ weight: [1, 2], scales: [Number.NaN] })
    using matrix = device.weight({ format: 'f32', layout: 'rows', out: 1, in: 2 })
    const elements = tensors.weight as FileTensor
    for (const wrong of [{ scale: Number.NaN }, { scale: -1 }, { inputScale: Number.NaN }]) {
      await expectError(
        () => stream.loadWeight(matrix, { rows: 1, elements, ...wrong }),
        'BAD_FORMAT',
        '`weight`',
        path,
      )
    }
    stream.loadWeight(matrix, { rows: 1, elements, rowScales: tensors.scales })
    await expectError(() => stream.sync(), 'BAD_FORMAT', '`scales`', path)
  })

  test('loads outlive the file that they were enqueued from', async () => {
    const stream = openStream()
    const { tensors } = await mapTensors({ weight: [1, 2] })
    using buffer = device.buffer(64)
    const to = buffer.tensor('f32', [2])
    const from = tensors.weight as FileTensor
    stream.loadTensor(to, from)
    from.file.dispose()
    expect(floats(await stream.read(to))).toEqual([1, 2])
    await expectError(() => stream.loadTensor(to, from), 'DISPOSED', 'file')
  })
})
