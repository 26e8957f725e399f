import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { loadParts } from '../../lib/load-model.js'

test.each([false, true])('a CPU keeps BF16 matrices as they are, whatever their size; exact: %s', async (exact) => {
  const folder = fileURLToPath(new URL('../fixtures/micro/bf16-basic', import.meta.url))
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
