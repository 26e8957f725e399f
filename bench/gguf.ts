// npm run bench:gguf -- synthetic:nano-30b FILE.gguf: the model that `bench:cpu -- --peer-model FILE.gguf` compares with
import { writeSyntheticGguf } from './gguf-model.js'

const [name, path] = process.argv.slice(2)
if (name === undefined || path === undefined) {
  process.stderr.write('npm run bench:gguf -- synthetic:<preset> FILE.gguf\n')
  process.exitCode = 2
} else {
  let told = 0
  const bytes = await writeSyntheticGguf(name, path, (written) => {
    if (written < told + 1e9) return
    told = written
    process.stderr.write(`${(written / 1e9).toFixed(1)} GB\n`)
  })
  process.stderr.write(`${path}: ${bytes} bytes\n`)
}
