import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished } from 'vitest'
import { Device, MappedFile } from '../../lib/core/index.js'
import { StepInput } from '../../lib/engine/step-input.js'
import { expectError } from '../helpers/expect-error.js'
import { folderWith } from '../helpers/safetensors.js'
import { gpuTest } from './gpu-test.js'

const [out, inputs] = [100, 1024]

/** bf16 numbers of eight exponents, but for one in every fourth row that is far smaller. */
function elements(): Uint16Array {
  const bits = new Uint16Array(out * inputs)
  for (let i = 0; i < bits.length; i++) {
    const exponent = i % (4 * inputs) === 5 ? 70 : 118 + ((Math.imul(i, 40503) >>> 11) % 8)
    bits[i] = ((i & 1) << 15) | (exponent << 7) | (Math.imul(i, 2654435761) >>> 25)
  }
  return bits
}

describe('a weight in 12 bits an element', () => {
  gpuTest('multiplies as in 16, and is smaller', async () => {
    const device = Device.open('cuda:0')
    const path = join(await folderWith({}), 'weight.bin')
    await writeFile(path, elements())
    const file = new MappedFile(path)
    const stream = device.stream()
    onTestFinished(() => {
      stream.dispose()
      file.dispose()
    })
    const shape = { format: 'bf16', layout: 'fragments', out, in: inputs } as const
    using plain = device.weight(shape)
    using compact = device.weight(shape)
    for (const weight of [plain, compact]) {
      stream.loadWeight(weight, { rows: out, elements: { file, offset: 0, dtype: 'bf16', name: 'weight' } })
    }
    stream.compactWeight(compact)
    await stream.sync()
    expect(plain.exceptions).toBeUndefined()
    expect(compact.exceptions).toBe(out / 4)
    expect(compact.bytes / plain.bytes).toBeGreaterThan(0.75)
    expect(compact.bytes / plain.bytes).toBeLessThan(0.8)

    using buffer = device.buffer(4 * 2 * inputs)
    const x = buffer.tensor('f32', [2, inputs])
    stream.write(
      x,
      Float32Array.from({ length: 2 * inputs }, (_, i) => Math.sin(i)),
    )
    const step = { slot: 0, position: 0, ids: Uint32Array.of(0, 0), pages: [0], rows: [0, 1] }
    stream.step(new StepInput().pack([step]))
    const both = () => [plain, compact].map((weight) => stream.linear(x, weight, { rows: 2 }))
    stream.fit(both)
    const read = stream.scope(() => both().map((y) => stream.read(y)))
    const [expected, found] = (await Promise.all(read)).map((bytes) => [
      ...new Float32Array(bytes.buffer, bytes.byteOffset, 2 * out),
    ]) as [number[], number[]]
    const size = Math.hypot(...expected)
    expect(size).toBeGreaterThan(0)
    expect(Math.hypot(...expected.map((y, i) => y - (found[i] as number))) / size).toBeLessThan(1e-5)
    await expectError(() => stream.compactWeight(plain), 'INVALID_OPTION', 'an op uses')
    await expectError(() => stream.compactWeight(compact), 'INVALID_OPTION', 'only a single bf16 matrix')
  })
})
