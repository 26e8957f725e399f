#!/usr/bin/env node
import { run } from './run.js'
import { packageRuntime } from './runtime.js'

// Never process.exit(): it would cut output off that is still on its way into a pipe.
process.exitCode = await run(
  process.argv.slice(2),
  {
    stdin: process.stdin,
    stdout: process.stdout,
    stderr: process.stderr,
    env: process.env,
    onInterrupt: (listener) => {
      process.on('SIGINT', listener)
      return () => process.off('SIGINT', listener)
    },
  },
  packageRuntime,
)
