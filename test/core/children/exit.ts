// Ends the process in the middle of work, in the way that the first argument names.
import { loadTiny, streamTiny } from './streaming.js'

const how = process.argv[2]
if (how === 'load') {
  void loadTiny({ onProgress: () => process.exit(7) })
} else if (how === 'prefill') {
  const model = await loadTiny()
  void model.score(Uint32Array.from({ length: 1000 }, (_, index) => index))
  setTimeout(() => process.exit(7), Number(process.argv[3]))
} else if (how === 'idle') {
  const model = await loadTiny()
  const { text } = await model.chat('What is 291 + 647?', { temperature: 0 })
  console.log(text)
} else {
  const model = await loadTiny()
  await streamTiny(model)
  if (how === 'exit') setTimeout(() => process.exit(7), Number(process.argv[3]))
  if (how === 'throw') {
    setTimeout(() => {
      throw new Error('thrown in mid-stream')
    }, Number(process.argv[3]))
  }
}
