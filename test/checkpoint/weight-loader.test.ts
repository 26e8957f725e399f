import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { WeightLoader } from '../../lib/checkpoint/weight-loader.js'
import { Device } from '../../lib/core/device.js'
import { NemotronH } from '../../lib/models/nemotron-h.js'

const folder = fileURLToPath(new URL('../fixtures/micro/bf16-basic', import.meta.url))

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
