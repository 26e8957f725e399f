import { describe, expect, it } from 'vitest'
import type { Stream } from '../../lib/core/stream.js'
import { LoadSteps } from '../../lib/engine/load-steps.js'

/** A stream whose syncs end when the test says so. */
function fakeStream() {
  const waiting: Waiting[] = []
  const sync = () =>
    new Promise<void>((resolve, reject) => {
      waiting.push({ resolve, reject })
    })
  return { stream: { sync } as unknown as Stream, waiting }
}

interface Waiting {
  resolve: () => void
  reject: (reason: Error) => void
}

const settle = () => new Promise((resolve) => setImmediate(resolve))

describe('LoadSteps', () => {
  it('lets one step be enqueued while the one before is loaded', async () => {
    const { stream, waiting } = fakeStream()
    const seen: number[] = []
    const steps = new LoadSteps(stream, (bytes) => seen.push(bytes))
    await steps.add(1)
    let second = false
    const adding = steps.add(2).then(() => {
      second = true
    })
    await settle()
    expect(waiting).toHaveLength(2)
    expect({ second, seen }).toEqual({ second: false, seen: [] })
    waiting[0]?.resolve()
    await adding
    expect(seen).toEqual([1])
    const done = steps.done()
    waiting[1]?.resolve()
    await done
    expect(seen).toEqual([1, 2])
  })

  it('throws in the next call what the stream or the listener threw', async () => {
    const { stream, waiting } = fakeStream()
    const steps = new LoadSteps(stream, (bytes) => {
      if (bytes === 3) throw new Error('aborted')
    })
    await steps.add(1)
    waiting[0]?.reject(new Error('broken file'))
    await settle()
    await expect(steps.add(2)).rejects.toThrow('broken file')
    waiting[1]?.resolve()
    await steps.add(3)
    waiting[2]?.resolve()
    await expect(steps.done()).rejects.toThrow('aborted')
  })
})
