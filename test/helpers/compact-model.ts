import type { DeviceName } from '../../lib/core/device.js'
import { score } from '../../lib/engine/score.js'
import { loadParts } from '../../lib/load-model.js'
import { outlierRows } from './bf16-checkpoint.js'

const ids = Uint32Array.from({ length: 24 }, (_, at) => 3 + ((at * 37) % 61))

/** Scores in one piece and token by token, and what the loader says of itself. */
export async function load(folder: string, device: DeviceName, compactElements: number | undefined, exact = false) {
  const log: string[] = []
  const info = (line: string) => log.push(line)
  const logger = { debug: info, info, warn: info, error: info }
  const mode = exact ? { exact } : ({ kvCache: 'bf16' } as const)
  const options = { device, contextLength: 128, maxBatch: 1, threads: 2, ...mode, logger } as const
  const { parts } = await loadParts(folder, options, { compactElements })
  try {
    const { compact, bytes } = parts.weights
    const run = async (chunk: number) => (await score(parts.runner, ids, { last: ids.length, chunk })).logits
    const [whole, single] = [await run(ids.length), await run(1)]
    return { compact, bytes, whole, single, log: log.filter((line) => line.includes('12 bits')) }
  } finally {
    parts.runner.dispose()
    parts.weights.dispose()
  }
}

/** Logits of the rows of the head that have an outlier, or of the others. */
export function half(logits: readonly Float32Array[], outliers: boolean): Float32Array[] {
  return logits.map((row) => row.filter((_, id) => (id % outlierRows === 0) === outliers))
}
