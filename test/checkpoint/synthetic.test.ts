import { createHash } from 'node:crypto'
import { readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { loadModel } from '../../lib/load-model.js'
import { planTensors } from '../../lib/synthetic/plan.js'
import { describeSynthetic } from '../../lib/synthetic/synthetic.js'
import { blockScales, codesWithMean, normalCdf, normalQuantile, normalTable } from '../../lib/synthetic/tables.js'
import { writeSynthetic } from '../../lib/synthetic/write.js'
import { expectError } from '../helpers/expect-error.js'
import { takeAll } from '../helpers/micro-checkpoint.js'

const folder = (name: string) => join(tmpdir(), `nibblet-synthetic-${process.pid}-${name}`)
const ids = [1, 5, 9, 700, 1023, 2, 2, 2]

async function logitsOf(name: string, options: { threads: number }): Promise<string> {
  const model = await loadModel(name, { ...options, contextLength: 64, maxBatch: 1 })
  try {
    const { logits } = await model.score(ids)
    expect(logits).toHaveLength(ids.length)
    expect(logits.every((row) => row.every(Number.isFinite))).toBe(true)
    const hash = createHash('sha256')
    for (const row of logits) hash.update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength))
    return hash.digest('hex')
  } finally {
    await model.dispose()
  }
}

describe('the 30B description', () => {
  it('has every name, shape, byte and parameter of the release', () => {
    const checkpoint = Checkpoint.synthetic('nano-30b')
    const sources = takeAll(checkpoint)
    const { summary } = checkpoint
    expect(summary).toMatchObject({ tensors: 24_147, parameters: 31_577_940_288, bytes: 19_339_781_632 })
    expect([...sources.values()].filter((source) => source.format === 'nvfp4')).toHaveLength(5968)
    expect(checkpoint.generation.stopIds).toEqual([2, 11])
    const { sidecar } = describeSynthetic('nano-30b').json
    expect((sidecar.quantization as { exclude_modules: string[] }).exclude_modules).toHaveLength(60)
  })

  it('gives up rows their lean, within a tenth of a percent of the share asked for', () => {
    const { config } = describeSynthetic('nano-30b')
    for (const share of [0.5, 0.8, 0.907]) {
      const up = planTensors(config, share).find(({ name }) => name.endsWith('experts.0.up_proj.weight'))
      const values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
      const codes = Array.from(up?.table.entries.subarray(0, 256) ?? [], (byte) => {
        const code = byte & 15
        return (code & 8 ? -1 : 1) * (values[code & 7] as number)
      })
      const mean = codes.reduce((sum, code) => sum + code, 0) / codes.length
      const rms = Math.sqrt(codes.reduce((sum, code) => sum + code * code, 0) / codes.length)
      const scales = blockScales()
      // Embeddings have half their size in common; the layers make them 0.5 % larger on average.
      const z = (-0.5 * Math.sqrt(2688) * mean * scales.mean) / (rms * scales.rms) / Math.sqrt(1 + 26 * 0.02 ** 2)
      expect(Math.abs(normalCdf(z) - share)).toBeLessThan(0.001)
    }
  })
})

describe('tables', () => {
  it('invert the normal distribution', () => {
    expect(normalCdf(1.959963984540054)).toBeCloseTo(0.975, 14)
    expect(normalQuantile(0.975)).toBeCloseTo(1.959963984540054, 12)
    expect(normalQuantile(1e-4)).toBeCloseTo(-3.719016485455709, 9)
    expect(normalQuantile(0.5)).toBe(0)
  })

  it('have the moments asked for', () => {
    const values = new Float32Array(normalTable('F32', { mean: 2, deviation: 3 }).entries.buffer)
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length
    expect(mean).toBeCloseTo(2, 4)
    expect(Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length)).toBeCloseTo(3, 2)
    const codes = codesWithMean(-0.05)
    expect(codes.mean / codes.rms).toBeCloseTo(-0.05, 3)
  })
})

describe('synthetic:nano-micro', () => {
  it('gives the same logits from its name, with any threads, and from the folder that synth writes', async () => {
    const out = folder('same')
    try {
      await writeSynthetic('nano-micro', out, { threads: 2 })
      const expected = await logitsOf('synthetic:nano-micro', { threads: 2 })
      expect(await logitsOf('synthetic:nano-micro', { threads: 1 })).toBe(expected)
      expect(await logitsOf(out, { threads: 2 })).toBe(expected)
      expect(await logitsOf('synthetic:nano-micro?seed=1', { threads: 2 })).not.toBe(expected)
      expect(await logitsOf('synthetic:nano-micro?relu-zeros=0.5', { threads: 2 })).not.toBe(expected)
    } finally {
      await rm(out, { recursive: true, force: true })
    }
  })

  it('is written the same by any number of threads, and not over what is there', async () => {
    const outs = [folder('one'), folder('three')]
    try {
      for (const [index, out] of outs.entries()) {
        await writeSynthetic('nano-micro', out, { threads: 1 + 2 * index, seed: 7, reluZeros: 0.8 })
      }
      const [one, three] = await Promise.all(outs.map((out) => readFile(join(out, 'model.safetensors'))))
      expect(one?.equals(three as Buffer)).toBe(true)
      await expectError(() => writeSynthetic('nano-micro', outs[0] as string), 'OUTPUT_EXISTS', '--force')
      const { bytes } = await writeSynthetic('nano-micro', outs[0] as string, { force: true })
      expect(bytes).toBe(Checkpoint.synthetic('nano-micro').bytes)
    } finally {
      await Promise.all(outs.map((out) => rm(out, { recursive: true, force: true })))
    }
  })

  it('opens by name, with its options in the fingerprint', async () => {
    const plain = await Checkpoint.open('synthetic:nano-micro')
    const seeded = await Checkpoint.open('synthetic:nano-micro?relu-zeros=0.5&seed=3')
    expect(seeded.folder).toBe('synthetic:nano-micro?relu-zeros=0.5&seed=3')
    expect(seeded.fingerprint).not.toBe(plain.fingerprint)
    expect((await Checkpoint.open('synthetic:nano-micro?seed=0')).fingerprint).toBe(plain.fingerprint)
  })

  it('refuses what it does not know', async () => {
    const missing = (name: string) => expectError(() => Checkpoint.open(name), 'MODEL_NOT_FOUND', 'nano-30b')
    await missing('synthetic:nano-31b')
    await missing('synthetic:constructor')
    for (const query of ['seed=-1', 'seed=x', 'seed=', 'relu-zeros=1', 'relu-zeros=', 'zeros=0.5']) {
      await expectError(() => Checkpoint.open(`synthetic:nano-micro?${query}`), 'INVALID_OPTION')
    }
    await expectError(() => loadModel('synthetic:nano-31b'), 'MODEL_NOT_FOUND', 'Did you mean nano-30b?')
    const model = await loadModel('synthetic:nano-micro', { threads: 1, contextLength: 64 })
    try {
      await expectError(() => model.tokenize('text'), 'MODEL_NOT_FOUND', 'tokenizer')
    } finally {
      await model.dispose()
    }
  })
})
