import type { Reporter, TestModule } from 'vitest/node'

/** Says at the end of a run what was skipped and what it would have needed. Tests that need a GPU lie in test/gpu. */
export default class SkipSummary implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    let gpu = 0
    let others = 0
    for (const module of modules) {
      const skipped = [...module.children.allTests('skipped')].length
      if (/\/test\/gpu\//.test(module.moduleId)) gpu += skipped
      else others += skipped
    }
    const teacher = process.env.NIBBLET_TEACHER === undefined ? 'NIBBLET_TEACHER is not set; ' : ''
    process.stdout.write(`\n Skipped  ${gpu} GPU tests, ${others} others (${teacher}each names its reason)\n`)
  }
}
