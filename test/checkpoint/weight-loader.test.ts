import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { WeightLoader } from '../../lib/checkpoint/weight-loader.js'
import { Device } from '../../lib/core/device.js'
import { loadParts } from '../../lib/load-model.js'
import { NemotronH } from '../../lib/models/nemotron-h.js'

const folder = fileURLToPath(new URL('../fixtures/micro/bf16-basic', import.meta.url))

test.each([false, true])('a CPU keeps BF16 matrices as they are, whatever their size; exact: %s', async (exact) => {
  const log: string[] = []
  const info = (line: string) => log.push(line)
  const logger = { debug: info, info, warn: info, error: info }
  const options = { device: 'cpu', contextLength: 128, maxBatch: 1, threads: 2, exact, logger } as const
  const { parts } = await loadParts(folder, options, { compactElements: 0 })
  try {
    expect(parts.weights.compact).toMatchObject({ matrices: 0, tried: 0 })
    expect(parts.weights.bytes).toBeGreaterThan(50_000)
  } finally {
    parts.runner.dispose()
    parts.weights.dispose()
  }
  expect(log.join('\n')).toContain('parameters on cpu')
  expect(log.join('\n')).not.toContain('12 bits')
})

/** Notes which op each linear module is loaded for. */
class Noting extends WeightLoader {
  readonly ops: Record<string, string> = {}
  override linear(...[modules, inputs, options]: Parameters<WeightLoader['linear']>) {
    for (const [module] of modules) this.ops[module] = options?.op ?? 'linear'
    return super.linear(modules, inputs, options)
  }
}

test('shared experts are loaded for `moe`, which reads no compact weights, and all else for `linear`', async () => {
  const checkpoint = await Checkpoint.open(folder)
  const stream = Device.open('cpu').stream({ threads: 1 })
  const loader = new Noting(checkpoint, stream)
  try {
    const sync = () => stream.sync()
    await NemotronH.load(checkpoint.config, loader, (layer) => checkpoint.kvScales(layer), sync)
    const shared = Object.keys(loader.ops).filter((module) => module.includes('.shared_experts.'))
    expect(shared).toHaveLength(2 * checkpoint.config.layers.filter((kind) => kind === 'moe').length)
    expect(shared.length).toBeGreaterThan(0)
    expect(Object.keys(loader.ops).filter((module) => loader.ops[module] === 'moe')).toEqual(shared)
  } finally {
    stream.dispose()
    loader.dispose()
  }
})
