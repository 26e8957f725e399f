import { readFileSync } from 'node:fs'

/** The version in package.json, one folder up from `lib` and from `dist` alike. */
export const packageVersion: string = JSON.parse(
  readFileSync(new URL('../package.json', import.meta.url), 'utf8'),
).version
