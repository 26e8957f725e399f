import { describe, expect, onTestFinished, test } from 'vitest'
import { CancelFlag, Device, type Graph, type Stream } from '../../lib/core/index.js'
import { StepInput } from '../../lib/engine/step-input.js'
import { expectError } from '../helpers/expect-error.js'

const device = Device.open('cpu')

function openStream(): Stream {
  const stream = device.stream({ threads: 1, exact: true })
  onTestFinished(() => stream.dispose())
  return stream
}

/** A stream with an embedding of four rows, and the graph that looks up to three tokens up. */
function openLookup(options: { rows?: boolean } = {}) {
  const stream = openStream()
  const buffer = device.buffer(64)
  onTestFinished(() => buffer.dispose())
  const table = buffer.tensor('f32', [4, 1])
  stream.write(table, Float32Array.from([10, 11, 12, 13]))
  const graph = stream.capture(() => stream.embed(table, 3), options)
  onTestFinished(() => graph.dispose())
  return { stream, table, graph }
}

function stepOf(ids: readonly number[], rows: readonly number[] = []): Int32Array {
  return new StepInput().pack([{ slot: 0, position: 0, ids: Uint32Array.from(ids), pages: [0], rows }])
}

function floats(bytes: Uint8Array | null): number[] {
  if (bytes === null) throw new Error('cancelled')
  return [...new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)]
}

describe('capture and launch', () => {
  test('a graph replays on each step, in order, and reports its result', async () => {
    const { graph } = openLookup()
    const launches = [
      [0, 1, 2],
      [3, 3, 3],
      [2, 1, 0],
    ].map((ids) => graph.launch(stepOf(ids)))
    expect((await Promise.all(launches)).map(floats)).toEqual([
      [10, 11, 12],
      [13, 13, 13],
      [12, 11, 10],
    ])
  })

  test('the step is copied at once', async () => {
    const { graph } = openLookup()
    const step = stepOf([0, 1, 2])
    const launched = graph.launch(step)
    step.fill(-1)
    expect(floats(await launched)).toEqual([10, 11, 12])
  })

  test('with rows, as many as the step has', async () => {
    const { graph } = openLookup({ rows: true })
    expect(floats(await graph.launch(stepOf([3, 2, 1], [0, 2])))).toEqual([13, 12])
    expect(floats(await graph.launch(stepOf([3], [])))).toEqual([])
    // More rows than the result has, which only a caller of the low level can ask for.
    await expectError(() => graph.launch(stepOf([3, 2, 1], [0, 1, 2, 0])), 'OP_FAILED', '4 rows')
  })

  test('nothing runs during capture', async () => {
    const stream = openStream()
    using buffer = device.buffer(64)
    const tensor = buffer.tensor('f32', [1])
    stream.write(tensor, Float32Array.of(1))
    using graph = stream.capture(() => {
      stream.write(tensor, Float32Array.of(2))
      return tensor
    })
    expect(floats(await stream.read(tensor))).toEqual([1])
    expect(floats(await graph.launch(stepOf([0])))).toEqual([2])
    expect(floats(await stream.read(tensor))).toEqual([2])
  })

  test('malformed steps are refused before they are enqueued', async () => {
    const { graph } = openLookup()
    const good = stepOf([0])
    for (const step of [
      good.subarray(1),
      good.subarray(0, -1),
      new Int32Array(0),
      good.map((word, at) => (at === 2 ? 5 : word)),
    ]) {
      await expectError(() => graph.launch(step), 'INVALID_OPTION', 'malformed step input')
    }
    await expectError(() => graph.launch([1, 2] as never), 'INVALID_OPTION', 'typed array')
    expect(floats(await graph.launch(good)).slice(0, 1)).toEqual([10])
  })

  test('a failing launch rejects with the op, and so does what waits behind it', async () => {
    const { graph } = openLookup()
    const launches = [[0], [4], [1]].map((ids) => graph.launch(stepOf(ids)))
    const [first, second, third] = await Promise.allSettled(launches)
    expect(first?.status).toBe('fulfilled')
    for (const result of [second, third]) {
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'OP_FAILED', details: { op: 'embed' } } })
    }
  })
})

describe('capture that cannot be', () => {
  test('nested', async () => {
    const { stream, table, graph } = openLookup()
    await expectError(
      () => stream.capture(() => stream.capture(() => undefined).launch as never),
      'INVALID_OPTION',
      'do not nest',
    )
    await expectError(() => stream.fit(() => stream.fit(() => {})), 'INVALID_OPTION', 'do not nest')
    // The stream is as it was.
    expect(floats(await graph.launch(stepOf([1, 1, 1])))).toEqual([11, 11, 11])
    expect(floats(await stream.read(table))).toEqual([10, 11, 12, 13])
  })

  test('of a function that returns a promise', async () => {
    const { stream, graph } = openLookup()
    const body = async () => undefined
    await expectError(() => stream.capture(body as never), 'INVALID_OPTION', 'returns a promise')
    const failing = async () => {
      throw new Error('unheard')
    }
    await expectError(() => stream.capture(failing as never), 'INVALID_OPTION', 'returns a promise')
    expect(floats(await graph.launch(stepOf([1, 1, 1])))).toEqual([11, 11, 11])
  })

  test('of a function that throws, dry or recording', async () => {
    const { stream, graph } = openLookup()
    for (const failing of [1, 2, 3]) {
      let calls = 0
      const body = () => {
        if (++calls === failing) throw new RangeError('mine')
        return undefined
      }
      expect(() => stream.capture(body)).toThrow(RangeError)
    }
    expect(floats(await graph.launch(stepOf([1, 1, 1])))).toEqual([11, 11, 11])
  })

  test('launching, and setting a step, inside', async () => {
    const { stream, graph } = openLookup()
    await expectError(() => stream.capture(() => void graph.launch(stepOf([0]))), 'INVALID_OPTION', 'during capture')
    await expectError(() => stream.capture(() => void stream.step(stepOf([0]))), 'INVALID_OPTION', 'during capture')
    await stream.sync()
  })

  test('on a graph or a stream that is gone', async () => {
    const { stream, graph } = openLookup()
    graph.dispose()
    graph.dispose()
    await expectError(() => graph.launch(stepOf([0])), 'DISPOSED', 'graph')
    const other = stream.capture(() => undefined)
    stream.dispose()
    await expectError(() => other.launch(stepOf([0])), 'DISPOSED', 'stream')
    await expectError(() => stream.capture(() => undefined), 'DISPOSED', 'stream')
    other.dispose()
  })
})

describe('CancelFlag', () => {
  test('cuts a launch short with null, and the stream goes on', async () => {
    const { graph } = openLookup()
    const cancel = new CancelFlag()
    cancel.cancel()
    const launches = [graph.launch(stepOf([0])), graph.launch(stepOf([1]), cancel), graph.launch(stepOf([2]))]
    const [first, second, third] = await Promise.all(launches)
    expect(floats(first ?? null)[0]).toBe(10)
    expect(second).toBeNull()
    expect(floats(third ?? null)[0]).toBe(12)
  })

  test('stops work that is under way within its first slices', async () => {
    const stream = openStream()
    const size = 2048
    using buffer = device.buffer(4 * size * size)
    using matrix = device.weight({ format: 'f32', layout: 'rows', out: size, in: size })
    const x = buffer.tensor('f32', [size, size])
    const ids = Array.from({ length: size }, () => 0)
    const step = new StepInput().pack([
      { slot: 0, position: 0, ids: Uint32Array.from(ids), pages: Array(size / 64).fill(0), rows: [] },
    ])
    using graph: Graph = stream.capture(() => stream.linear(x, matrix))
    const cancel = new CancelFlag()
    const start = performance.now()
    // About ten seconds of the reference kernel.
    const launched = graph.launch(step, cancel)
    setTimeout(() => cancel.cancel(), 20)
    expect(await launched).toBeNull()
    expect(performance.now() - start).toBeLessThan(1500)
  })
})
