// Ends workers in mid-stream, or asks four at once; prints what happened as JSON.
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { Device } from '../../../lib/core/index.js'
import { loadTiny } from './streaming.js'

const [, , how, task, count] = process.argv
const device = Device.open('cpu')
const script = new URL('./worker.mjs', import.meta.url)

function start(data: object, argv: string[] = []): Worker {
  // What a worker prints when it is ended by an exception is expected.
  return new Worker(script, { workerData: data, argv, stderr: true })
}

async function endOne(round: number): Promise<number> {
  const worker = start({ task }, [how ?? ''])
  worker.on('error', () => {})
  // Not by events.once, which rejects on the error that is wanted here.
  const exit = new Promise<number>((resolve) => worker.once('exit', resolve))
  await Promise.race([new Promise((resolve) => worker.once('message', resolve)), exit])
  if (how === 'terminate') {
    await new Promise((resolve) => setTimeout(resolve, round % 7))
    return worker.terminate()
  }
  return exit
}

if (how === 'answers') {
  const prompts = ['What is 291 + 647?', 'What is 12 + 30?']
  const [here, ...there] = await Promise.all([
    answers(prompts),
    ...[1, 2, 3, 4].map(async () => {
      const worker = start({ task: 'answer', prompts })
      const [[ids]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')])
      return ids as string[]
    }),
  ])
  console.log(JSON.stringify({ here, there, allocated: device.memory().allocated }))
} else {
  const codes: number[] = []
  const rss: number[] = []
  const allocated: number[] = []
  for (let round = 0; round < Number(count); round++) {
    codes.push(await endOne(round))
    globalThis.gc?.()
    rss.push(process.memoryUsage().rss)
    allocated.push(device.memory().allocated)
  }
  console.log(JSON.stringify({ codes, rss, allocated }))
}

async function answers(prompts: string[]): Promise<string[]> {
  const model = await loadTiny({ threads: 2 })
  try {
    const replies = await Promise.all(prompts.map((prompt) => model.chat(prompt, { temperature: 0 })))
    return [replies[0]?.text ?? '', ...replies.map(({ ids }) => ids.join())]
  } finally {
    await model.dispose()
  }
}
