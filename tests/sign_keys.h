/* Keys that were made for the tests and sign nothing else. */
#pragma once

#define KEY_ED25519                                                                                \
    "-----BEGIN PRIVATE KEY-----\n"                                                                \
    "MC4CAQAwBQYDK2VwBCIEIEM4GMFlNWiJpVx0FN7bWzWKDZhWiZeg5uE23OM2Is1n\n"                           \
    "-----END PRIVATE KEY-----\n"
#define KEY_ED25519_PUBLIC                                                                         \
    "-----BEGIN PUBLIC KEY-----\n"                                                                 \
    "MCowBQYDK2VwAyEAHNsALDlHMNtwrZJdSd5lh9WHf9ntpfbEXNgglRSn5nk=\n"                               \
    "-----END PUBLIC KEY-----\n"
#define KEY_ED25519_ID "95485899e26c1b3730792c1f61f9acb138f98547afcb4cee74de9d562d0736e9"
#define KEY_OTHER                                                                                  \
    "-----BEGIN PRIVATE KEY-----\n"                                                                \
    "MC4CAQAwBQYDK2VwBCIEICJCZMrjnbpXAJ+OYH8GVsJQ7MDbKgkwUU1DfbCfbn35\n"                           \
    "-----END PRIVATE KEY-----\n"
#define KEY_EC                                                                                     \
    "-----BEGIN PRIVATE KEY-----\n"                                                                \
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgeWniyYxmEAJVQZg+\n"                           \
    "yRaQ3bJYmVw7lGtGgczeW3DrzdmhRANCAASIY+yTm2PRFdTW5yBYw083lt+sHQKw\n"                           \
    "WysDB3HicCpMQTDatpE1SqCDbrczrkufD+vwcikSnkoP1KqkK7Eg3Bqy\n"                                   \
    "-----END PRIVATE KEY-----\n"
#define KEY_ENCRYPTED                                                                              \
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"                                                      \
    "MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg5XH4iXo0UbAICCAAw\n"                           \
    "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEPzWm03Q322G5COu8Js5vJUEQG0k\n"                           \
    "UZf2WjAF1jd7aCjnzZYi6b2r6fLFX7bku14O6cTlNmNj3ToGjKZLtzxHdliTqMTL\n"                           \
    "FPzJgM5mAsZAx1vWTf8=\n"                                                                       \
    "-----END ENCRYPTED PRIVATE KEY-----\n"
