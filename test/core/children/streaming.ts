import { fileURLToPath } from 'node:url'
import { loadModel, type Model } from '../../../lib/index.js'
import { request } from '../../helpers/engine-request.js'
import { openRunner } from '../../helpers/open-runner.js'

const fixture = fileURLToPath(new URL('../../fixtures/micro/bf16-basic', import.meta.url))

/** The bundled model with a small cache. */
export function loadTiny(options: Parameters<typeof loadModel>[1] = {}): Promise<Model> {
  return loadModel('tiny', { contextLength: 1024, maxBatch: 4, ...options })
}

/** Three sampled replies at once; resolves when each has streamed some text, and leaves them running. */
export async function streamTiny(model: Model): Promise<Promise<unknown>[]> {
  const started: Promise<void>[] = []
  const ended = ['Count to one hundred.', 'What is 291 + 647?', 'Tell me a story.'].map((prompt, seed) => {
    const stream = model.chat(prompt, { temperature: 3, seed, maxTokens: 900 })
    const { promise, resolve } = withResolvers()
    started.push(promise)
    return (async () => {
      let parts = 0
      for await (const _ of stream) if (++parts === 3) resolve()
    })()
  })
  for (const end of ended) end.catch(() => {})
  await Promise.race([Promise.all(started), Promise.all(ended)])
  return ended
}

/** Micro models load in milliseconds: three endless requests on one; resolves once tokens come. */
export async function streamMicro() {
  const opened = await openRunner(fixture, 'bf16', { contextLength: 32_768, maxBatch: 3 })
  let tokens = 0
  const { promise, resolve } = withResolvers()
  const ended = [1, 2, 3].map((seed) =>
    opened.engine.run(
      request(
        Array.from({ length: 5 * seed }, (_, index) => (index * 7 + seed) % opened.config.vocabSize),
        {
          sampling: { temperature: 1, seed },
          maxTokens: 32_000,
          onToken: () => {
            if (++tokens === 20) resolve()
            return 'continue'
          },
        },
      ),
    ),
  )
  for (const end of ended) end.catch(() => {})
  await Promise.race([promise, ...ended])
  return { ...opened, ended }
}

function withResolvers(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void
  const promise = new Promise<void>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}
