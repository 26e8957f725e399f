// Installs the pinned CUDA toolchain in .cuda, where the machine has none that fits. `npm run build:cuda` uses it.
import { fileURLToPath } from 'node:url'
import { installCuda } from './setup/cuda-install.mjs'

process.exitCode = await installCuda(fileURLToPath(new URL('../', import.meta.url)))
