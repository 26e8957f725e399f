import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { WeightLoader } from '../../lib/checkpoint/weight-loader.js'
import { Device } from '../../lib/core/device.js'
import { BatchEngine } from '../../lib/engine/engine.js'
import { ModelRunner, type RunnerOptions } from '../../lib/engine/model-runner.js'
import { greedySampling } from '../../lib/engine/types.js'
import { NemotronH } from '../../lib/models/nemotron-h.js'

/** How a model computes: what `loadModel` derives from `exact` and `kvCache`. */
export type Mode = 'exact' | 'bf16' | 'fp8'

/** The parts under `Model`, for tests that choose chunks or have no tokenizer. */
export async function openRunner(folder: string, mode: Mode, options: Partial<RunnerOptions> = {}) {
  const checkpoint = await Checkpoint.open(folder)
  const settings: RunnerOptions = {
    device: Device.open('cpu'),
    threads: 2,
    exact: mode === 'exact',
    maxBatch: 4,
    contextLength: 512,
    kvCache: mode === 'fp8' ? 'fp8' : 'bf16',
    ...options,
  }
  const stream = settings.device.stream({ threads: settings.threads, exact: settings.exact })
  const loader = new WeightLoader(checkpoint, stream)
  const model = await NemotronH.load(
    checkpoint.config,
    loader,
    (layer) => checkpoint.kvScales(layer),
    () => stream.sync(),
  )
  checkpoint.finish()
  loader.close()
  const runner = new ModelRunner(model, stream, settings)
  const engine = new BatchEngine(runner, runner.allocator)
  return {
    runner,
    engine,
    config: checkpoint.config,
    /** A greedy continuation through the engine, up to and including a stop id. */
    async greedy(prompt: Uint32Array, maxTokens: number): Promise<number[]> {
      const ids: number[] = []
      await engine.run({
        prompt,
        sampling: greedySampling,
        maxTokens,
        stopIds: checkpoint.generation.stopIds,
        onToken: ({ id }) => {
          ids.push(id)
          return 'continue'
        },
      })
      return ids
    },
    dispose() {
      engine.dispose()
      runner.dispose()
      loader.dispose()
    },
  }
}

/** Runs `use` on a runner and disposes of it. */
export async function withRunner<T>(
  folder: string,
  mode: Mode,
  use: (opened: Awaited<ReturnType<typeof openRunner>>) => Promise<T>,
  options: Partial<RunnerOptions> = {},
): Promise<T> {
  const opened = await openRunner(folder, mode, options)
  try {
    return await use(opened)
  } finally {
    opened.dispose()
  }
}
