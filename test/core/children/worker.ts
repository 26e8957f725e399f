// The work of one worker thread, as its data says. It reports once it is in mid-stream, or its answers.
import { parentPort, workerData } from 'node:worker_threads'
import { loadTiny, streamMicro, streamTiny } from './streaming.js'

const { task, prompts } = workerData as { task: string; prompts?: string[] }
if (task === 'answer') {
  const model = await loadTiny({ threads: 1 })
  const replies = await Promise.all((prompts ?? []).map((prompt) => model.chat(prompt, { temperature: 0 })))
  parentPort?.postMessage(replies.map(({ ids }) => ids.join()))
  await model.dispose()
} else {
  if (task === 'tiny') await streamTiny(await loadTiny({ threads: 1 }))
  else await streamMicro()
  parentPort?.postMessage('streaming')
  if (process.argv[2] === 'exit') setTimeout(() => process.exit(3), 5)
  if (process.argv[2] === 'throw') {
    setTimeout(() => {
      throw new Error('thrown in a worker')
    }, 5)
  }
}
