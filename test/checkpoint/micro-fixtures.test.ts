import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { Checkpoint, type LinearSource } from '../../lib/checkpoint/checkpoint.js'
import { takeAll } from '../helpers/micro-checkpoint.js'

const root = fileURLToPath(new URL('../fixtures/micro/', import.meta.url))
const open = (name: string) => Checkpoint.open(`${root}${name}`)

async function sourcesOf(name: string): Promise<LinearSource[]> {
  return [...takeAll(await open(name)).values()]
}

describe('the micro fixtures, made with transformers', () => {
  it.each(
    readdirSync(root, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name),
  )('%s opens, and every tensor is taken', async (name) => {
    const checkpoint = await open(name)
    const sources = [...takeAll(checkpoint).values()]
    expect(sources.length).toBeGreaterThan(checkpoint.config.layers.length)
    for (const { scale, inputScale = 1 } of sources) {
      expect(scale).toBe(Math.fround(scale))
      expect(inputScale).toBeGreaterThan(0)
    }
  })

  it.each<[string, readonly string[]]>([
    ['bf16-basic', ['bf16']],
    ['tf5-f32', ['f32']],
    ['fp8-modelopt', ['bf16', 'fp8']],
    ['fp8-compressed-tensors', ['bf16', 'fp8']],
    ['nvfp4-modelopt', ['bf16', 'nvfp4']],
    ['nvfp4-compressed-tensors', ['bf16', 'nvfp4']],
    ['nvfp4-embedded-wildcards', ['bf16', 'nvfp4']],
    ['nvfp4-fp8-mixed', ['bf16', 'fp8', 'nvfp4']],
  ])('%s holds %j', async (name, formats) => {
    expect([...new Set((await sourcesOf(name)).map((source) => source.format))].sort()).toEqual(formats)
  })

  it('has attention biases, and biases of everything else', async () => {
    const biased = async (name: string) =>
      (await sourcesOf(name)).filter(({ bias }) => bias).map(({ module }) => module)
    expect(await biased('bf16-attention-bias')).toHaveLength(4)
    expect((await biased('bf16-dense')).some((module) => module.endsWith('in_proj'))).toBe(true)
  })

  it('has KV scales', async () => {
    const checkpoint = await open('nvfp4-embedded-wildcards')
    const { k, v } = checkpoint.kvScales(checkpoint.config.layers.indexOf('attention'))
    expect(k).not.toBe(1)
    expect(v).not.toBe(1)
  })
})
