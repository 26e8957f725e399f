import { describe, expect } from 'vitest'
import { bench } from '../../lib/bench/bench.js'
import { Device } from '../../lib/core/device.js'
import { loadModel } from '../../lib/index.js'
import { gpuTest } from './gpu-test.js'

const device = 'cuda:0'

describe('a GPU as a device', () => {
  gpuTest('is what auto and cuda stand for, and has a name', () => {
    expect(Device.open('auto').name).toBe(device)
    expect(Device.open('cuda').name).toBe(device)
    expect(Device.open(device).model.length).toBeGreaterThan(3)
  })

  gpuTest('one that is not there is a typed error', () => {
    expect(() => Device.open('cuda:99')).toThrow(expect.objectContaining({ code: 'NO_DEVICE' }))
  })

  gpuTest('too much memory is a typed error, and the process goes on', async () => {
    const gpu = Device.open(device)
    const before = gpu.memory().allocated
    expect(() => gpu.buffer(2 ** 46)).toThrow(expect.objectContaining({ code: 'OUT_OF_MEMORY' }))
    expect(gpu.memory().allocated).toBe(before)
    await using model = await loadModel('tiny', { device })
    expect((await model.chat('What is 291 + 647?')).text.trim()).toBe('938')
  })

  gpuTest('a bench tells how long the GPU waits between steps', async () => {
    const sizes = { prompt: 8, generate: 40, rooflineBytes: 1 << 20 }
    const { decode, compactWeights } = await bench('synthetic:nano-micro', { device, ...sizes })
    expect(compactWeights).toBeUndefined()
    expect(decode.graphKernels).toBeGreaterThan(10)
    const { median = -1, p95 = -1 } = decode.gpuIdleMicroseconds ?? {}
    expect(median).toBeGreaterThanOrEqual(0)
    expect(p95).toBeGreaterThanOrEqual(median)
    expect(p95).toBeLessThan(1e6)
  })

  gpuTest('exact mode is refused before anything is loaded', async () => {
    await expect(loadModel('tiny', { device, exact: true })).rejects.toMatchObject({ code: 'INVALID_OPTION' })
  })

  gpuTest('memory comes back when models go', async () => {
    const gpu = Device.open(device)
    const sizes: number[] = []
    for (let round = 0; round < 4; round++) {
      {
        await using model = await loadModel('tiny', { device, maxBatch: 2, contextLength: 512 })
        await model.chat('What is 12 + 34?', { maxTokens: 8 })
      }
      sizes.push(gpu.memory().allocated)
    }
    expect(new Set(sizes).size).toBe(1)
  })

  gpuTest('an abort ends a reply and leaves the model usable', async () => {
    await using model = await loadModel('tiny', { device, maxBatch: 2 })
    const controller = new AbortController()
    // By a timer the reply would be complete already.
    const reply = model.chat('What is 291 + 647?', { signal: controller.signal })
    const read = async () => {
      for await (const part of reply) if (part) controller.abort(new Error('enough'))
    }
    await expect(read()).rejects.toThrow('enough')
    expect((await model.chat('What is 291 + 647?')).text.trim()).toBe('938')
  })

  gpuTest('two models at once, and the CPU beside them', async () => {
    await using first = await loadModel('tiny', { device })
    await using second = await loadModel('tiny', { device })
    await using third = await loadModel('tiny', { device: 'cpu' })
    const replies = await Promise.all([first, second, third].map((model) => model.chat('What is 291 + 647?')))
    expect(replies.map(({ text }) => text.trim())).toEqual(['938', '938', '938'])
  })
})
