import { describe, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { emptyProjectSettings, parseProjectSettings } from './project-settings.ts'

function refusal(text: string): string {
  try {
    parseProjectSettings(text)
  } catch (error) {
    if (PlatformError.is(error) && error.code === 'bad_request') return error.message
    throw error
  }
  throw new Error('it was taken')
}

describe('blaxel.toml', () => {
  test('is read with every key that it may have', () => {
    const settings = parseProjectSettings(`
      name = "my-agent"
      description = "answers"
      workspace = "main"
      type = "agent"
      protocol = "http"
      region = "us-pdx-1"
      image = "docker.io/library/alpine:3"
      functions = ["search"]
      models = ["all"]
      agents = []
      policies = ["eu"]
      skipRoot = true
      public = true
      memory = 2048
      port = 8080
      directory = "data"
      defaultSize = 2048
      [entrypoint]
      prod = "python src/main.py"
      dev = "fastapi dev"
      [env]
      CITY = "San Francisco"
      COUNT = 3
      ON = true
      [labels]
      team = "weather"
      [build]
      slim = false
      dockerfile = "./docker/own.Dockerfile"
      [build.args]
      VERSION = "1"
      [agent.other]
      path = "./other"
      port = 1339
      type = "agent"
      [function.tool]
      path = "tool"
      [job.work]
      path = "work"
      [runtime]
      memory = 1024
      timeout = "5m"
      storageMb = 512
      generation = "mk3"
      transport = "stdio"
      minScale = 0
      maxScale = 10
      maxConcurrentTasks = 10
      maxRetries = 0
      unheardOf = "kept"
      [[runtime.ports]]
      name = "http"
      target = 3000
      protocol = "tcp"
      [[triggers]]
      id = "one"
      type = "http"
      timeout = "1h"
      [triggers.configuration]
      path = "agents/my-agent/sync"
      authenticationType = "public"
      timeout = 30
      [[triggers]]
      id = "two"
      type = "cron"
      [[triggers.configuration]]
      schedule = "0 * * * *"
      [[volumes]]
      name = "cache"
      mountPath = "/data"
      readOnly = true
      [githubRunner]
      repositories = ["me/mine"]
      [deploy]
      region = "eu"
      memory = 4096
      [somethingElse]
      x = 1
    `)
    expect(settings).toEqual({
      name: 'my-agent',
      description: 'answers',
      workspace: 'main',
      type: 'agent',
      protocol: 'http',
      region: 'us-pdx-1',
      image: 'docker.io/library/alpine:3',
      functions: ['search'],
      models: ['all'],
      agents: [],
      policies: ['eu'],
      skipRoot: true,
      public: true,
      memory: 2048,
      port: 8080,
      directory: 'data',
      defaultSize: 2048,
      entrypoint: { prod: 'python src/main.py', dev: 'fastapi dev' },
      env: { CITY: 'San Francisco', COUNT: '3', ON: 'true' },
      build: { slim: false, dockerfile: 'docker/own.Dockerfile', args: { VERSION: '1' } },
      labels: { team: 'weather' },
      agent: { other: { path: './other', port: 1339, type: 'agent' } },
      function: { tool: { path: 'tool' } },
      job: { work: { path: 'work' } },
      runtime: {
        memory: 1024,
        timeout: 300,
        storageMb: 512,
        generation: 'mk3',
        transport: 'stdio',
        minScale: 0,
        maxScale: 10,
        maxConcurrentTasks: 10,
        maxRetries: 0,
        unheardOf: 'kept',
        ports: [{ name: 'http', target: 3000, protocol: 'tcp' }],
      },
      triggers: [
        {
          id: 'one',
          type: 'http',
          timeout: 3600,
          configuration: { path: 'agents/my-agent/sync', authenticationType: 'public', timeout: 30 },
        },
        { id: 'two', type: 'cron', configuration: { schedule: '0 * * * *' } },
      ],
      volumes: [{ name: 'cache', mountPath: '/data', readOnly: true }],
      githubRunner: { repositories: ['me/mine'] },
      deploy: { region: 'eu', memory: 4096 },
    })
  })

  test('says nothing where it has nothing', () => {
    expect(parseProjectSettings('')).toEqual(emptyProjectSettings())
    expect(emptyProjectSettings()).toMatchObject({ env: {}, build: { slim: true, args: {} }, entrypoint: {} })
  })

  test('knows volume templates by all their names', () => {
    for (const name of ['volume-template', 'volumetemplate', 'vt'])
      expect(parseProjectSettings(`type = "${name}"`).type).toBe('volume-template')
  })

  test('has variables in the keys that may have them, and only there', () => {
    const upper = (text: string) => text.replace('$NAME', 'mine')
    const settings = parseProjectSettings('name = "$NAME"\ntype = "$NAME"\n[env]\nX = "$NAME"', (text) =>
      text === '$NAME' ? 'agent' : upper(text),
    )
    expect(settings).toMatchObject({ name: 'agent', type: 'agent', env: { X: '$NAME' } })
    expect(parseProjectSettings('type = "$TYPE"').type).toBeUndefined()
  })

  test.each([
    ['type = "robot"', 'type is "robot", which is not one of agent, function, job'],
    ['public = "yes"', 'public is "yes", which is not true or false'],
    ['port = 70000', 'port is 70000, which is not a whole number from 1 to 65535'],
    ['[runtime]\nmemory = "big"', 'runtime.memory is "big", which is not a whole number'],
    [
      '[runtime]\ntimeout = "soon"',
      'runtime.timeout is "soon", which is not seconds as a whole number, or a duration',
    ],
    ['[runtime]\ntimeout = "53w"', 'at most a year'],
    ['[[triggers]]\n[[triggers]]\ntimeout = true', 'triggers[1].timeout is true'],
    ['[runtime]\ntransport = "pigeon"', 'not one of http-stream, websocket, stdio'],
    ['functions = "search"', 'functions is "search", which is not a list of texts'],
    ['[env]\nA = ["x"]', 'env.A is ["x"], which is not a text in quotes'],
    ['env = 3', 'env is 3, which is not a table of texts'],
    ['[entrypoint]\nprod = 3', 'entrypoint.prod is 3, which is not a text in quotes'],
    ['[[volumes]]\nsizeMb = 0', 'volumes[0].sizeMb is 0'],
    [
      '[build]\ndockerfile = "../Dockerfile"',
      'build.dockerfile is "../Dockerfile", which is not a path in the project',
    ],
    ['[build]\ndockerfile = "recipe"', 'build.dockerfile is "recipe"'],
    ['a = ', 'cannot be read: line 1'],
  ])('that is wrong is refused by its key, its value and what would be right: %s', (text, message) => {
    expect(refusal(text)).toStartWith('blaxel.toml: ')
    expect(refusal(text)).toContain(message)
  })
})
