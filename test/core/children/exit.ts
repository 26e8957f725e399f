// Ends the process in the middle of work, in the way that the first argument names.
import { Device } from '../../../lib/core/index.js'
import { loadTiny, streamTiny } from './streaming.js'

const how = process.argv[2]
if (how === 'load') {
  void loadTiny({ onProgress: () => process.exit(7) })
} else if (how === 'prefill') {
  const model = await loadTiny()
  void model.score(Uint32Array.from({ length: 1000 }, (_, index) => index))
  setTimeout(() => process.exit(7), Number(process.argv[3]))
} else if (how === 'refused') {
  // Calls that throw or reject leave nothing pending that would keep the process alive.
  const stream = Device.open('cpu').stream({ threads: 1 })
  const graph = stream.capture(() => undefined)
  let refusals = 0
  const refuse = async (call: () => unknown) => {
    try {
      await call()
    } catch {
      refusals++
    }
  }
  await refuse(() => stream.capture(() => void graph.launch(new Int32Array(8).fill(0x53544550, 0, 1))))
  await refuse(() => graph.launch(new Int32Array(3)))
  stream.dispose()
  await refuse(() => stream.sync())
  await refuse(() => graph.launch(new Int32Array(8).fill(0x53544550, 0, 1)))
  graph.dispose()
  console.log(refusals)
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
